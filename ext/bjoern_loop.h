// What bjoern 3.2.2 (bjoern/server.c) tells libev about its connections, overheard and, for answers, improved on.
//
// bjoern reaches libev through its table of imported functions. Two entries of that table are replaced, those that start
// and stop a watcher.
//
// Answers are written within the turn of the loop that made them: to answer, bjoern stops a connection's reading
// watcher, starts it as a writing one, has it called on the loop's next turn, and swaps it back; two calls of epoll_ctl
// for an answer that a socket nearly always takes as it is. Where the gate has announced an answer, the writing watcher
// is not started but called, by libev's own rules an ordinary callback, before the loop polls again. It starts only
// where the answer was not taken whole. What was not announced goes its old way.
//
// PERF: the answers of a turn are written together, since each by itself would push the model's tables out of the caches
// (benchmarks/compare.py, reviews).
//
// The errors that bjoern answers by itself, without a body, become those of the service.
//
// What a connection does is noted: when it was accepted, read from, and done with an answer. A Unix socket tells nothing
// of that by itself.
#ifndef PYSERVE_BJOERN_LOOP_H
#define PYSERVE_BJOERN_LOOP_H

#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#include <Python.h>
#include <ev.h>  // before <link.h>, which has an EV_NONE of its own
#include <dlfcn.h>
#include <link.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

typedef void watcher_function(struct ev_loop *, ev_io *);
typedef void watcher_callback(struct ev_loop *, ev_io *, int);

// A descriptor's connection; counts start anew with each connection.
typedef struct {
    watcher_callback *callback;  // bjoern's, for reading
    uint64_t answers;  // that were written whole
    uint64_t reads;  // since the last of them
    bool answered;  // whether the request that was read last has its answer
    bool writing;  // whether something waits to be taken
} connection_notes;

// Answers that wait for each other. libev polls for as many events at first.
enum { MOST_WAITING = 64 };

// What bjoern answers by itself, and what takes its place.
typedef struct {
    const char *bare;
    int status;
    const char *line;
    const char *message;
    PyObject *reply;
    uint64_t number;  // of those written since it was asked last
} bare_error;

enum { BARE_ERRORS = 4 };
static bare_error bare_errors[BARE_ERRORS] = {
    {"HTTP/1.1 400 Bad Request\r\n\r\n", 400, "400 Bad Request", "the request is not well-formed HTTP/1.1", NULL, 0},
    {"HTTP/1.1 406 Length Required\r\n\r\n", 411, "411 Length Required", "a body needs a Content-Length", NULL, 0},
    {"HTTP/1.1 417 Expectation Failed\r\n\r\n", 417, "417 Expectation Failed",
     "the only expectation allowed is 100-continue", NULL, 0},
    {"HTTP/1.1 500 Internal Server Error\r\n\r\n", 500, "500 Internal Server Error",
     "An internal server error has occurred", NULL, 0},
};

static watcher_function *libev_io_start, *libev_io_stop;
static void (*libev_prepare_start)(struct ev_loop *, ev_prepare *);
static void (*libev_unref)(struct ev_loop *);
static bool answer_announced;
static const ev_io *answering;  // the watcher of the announced answer, from its stop to its start
static ev_io *waiting[MOST_WAITING];  // the watchers of answers to be written; stopped, so that nothing ends them
static int waiting_number;
static const ev_io *written;  // the watcher whose answer is being written
static bool answer_left;  // whether bjoern is done with that answer; the watcher may not exist any more
static ev_prepare before_poll;
static const ev_io *acceptor;  // the listener's watcher, the first to be started
static bool accepting;
static connection_notes *notes;  // by descriptor
static int notes_size;

// Have the answer that is returned to bjoern next written within this turn. Every return to bjoern ends in a stop of the
// reading watcher, so the announcement cannot be left over for another connection.
static inline void announce_answer(void) {
    answer_announced = libev_io_start != NULL;
}

// Return how often an error of bjoern's own was written since this was asked last, and its status.
static inline uint64_t take_bare_error(int which, int *status) {
    uint64_t number = bare_errors[which].number;
    bare_errors[which].number = 0;
    *status = bare_errors[which].status;
    return number;
}

// Return what is known of a connection, or NULL.
static inline const connection_notes *notes_of(int descriptor) {
    return descriptor >= 0 && descriptor < notes_size && notes[descriptor].callback != NULL ? &notes[descriptor] : NULL;
}

static void read_noted(struct ev_loop *loop, ev_io *watcher, int events) {
    connection_notes *note = &notes[watcher->fd];
    note->reads++;
    accepting = watcher == acceptor;
    note->callback(loop, watcher, events);  // it may move the notes
    accepting = false;
}

// Note that a watcher begins to read, and have it note each read.
static void note_start(ev_io *watcher) {
    int descriptor = watcher->fd;
    if (descriptor >= notes_size) {
        int size = descriptor + 64 > 2 * notes_size ? descriptor + 64 : 2 * notes_size;
        connection_notes *grown = (connection_notes *)realloc(notes, (size_t)size * sizeof(*notes));
        if (grown == NULL) {
            return;  // nothing is known of this connection
        }
        memset(grown + notes_size, 0, (size_t)(size - notes_size) * sizeof(*notes));
        notes = grown;
        notes_size = size;
    }
    connection_notes *note = &notes[descriptor];
    if (acceptor == NULL) {
        acceptor = watcher;
    }
    if (accepting || watcher == acceptor) {
        note->answers = note->reads = 0;
    } else if (note->answered) {
        note->answers++;
        note->reads = 0;
    }  // else what was written is "100 Continue"
    note->answered = note->writing = false;
    note->callback = ev_cb(watcher);
    ev_set_cb(watcher, read_noted);
}

static void stop_watcher(struct ev_loop *loop, ev_io *watcher) {
    if (answer_announced) {
        answer_announced = false;
        answering = watcher;
        if (notes_of(watcher->fd) != NULL) {
            notes[watcher->fd].answered = true;
        }
    } else if (watcher == written) {
        answer_left = true;
    }
    libev_io_stop(loop, watcher);
}

// In words of a pointer, from a watcher on within its request.
enum { WATCHER_CLIENT_FD = 7, WATCHER_CURRENT_CHUNK = 12 };

// Replace what bjoern is about to write on a connection, where it is one of its own errors. Needs the GIL.
static void replace_error(ev_io *watcher) {
    void **request = (void **)watcher;
    PyObject **chunk = (PyObject **)&request[WATCHER_CURRENT_CHUNK];
    int client;
    memcpy(&client, &request[WATCHER_CLIENT_FD], sizeof(int));
    if (client != watcher->fd || *chunk == NULL || !PyBytes_CheckExact(*chunk)) {
        return;
    }
    for (int i = 0; i < BARE_ERRORS; i++) {
        if (bare_errors[i].reply != NULL && strcmp(PyBytes_AS_STRING(*chunk), bare_errors[i].bare) == 0) {
            Py_INCREF(bare_errors[i].reply);
            Py_SETREF(*chunk, bare_errors[i].reply);
            bare_errors[i].number++;
            return;
        }
    }
}

static void start_writing(struct ev_loop *loop, ev_io *watcher) {
    if (notes_of(watcher->fd) != NULL) {
        notes[watcher->fd].writing = true;
    }
    libev_io_start(loop, watcher);
}

// Write the answers that wait.
static void write_answers(struct ev_loop *loop) {
    for (int i = 0; i < waiting_number; i++) {
        ev_io *watcher = waiting[i];
        written = watcher;
        answer_left = false;
        ev_cb(watcher)(loop, watcher, EV_WRITE);
        written = NULL;
        if (!answer_left) {
            start_writing(loop, watcher);
        }
    }
    waiting_number = 0;
}

static void write_before_poll(struct ev_loop *loop, ev_prepare *watcher, int events) {
    write_answers(loop);
}

static void start_watcher(struct ev_loop *loop, ev_io *watcher) {
    if (watcher->events & EV_READ) {
        if (acceptor == NULL) {
            ev_prepare_init(&before_poll, write_before_poll);
            libev_prepare_start(loop, &before_poll);
            libev_unref(loop);  // it does not keep the loop alive
        }
        note_start(watcher);
        if (watcher == written) {
            // epoll has not been told otherwise: the same descriptor with the same events.
            watcher->events &= ~EV__IOFDSET;
        }
        libev_io_start(loop, watcher);
    } else if (watcher == answering) {
        answering = NULL;
        waiting[waiting_number++] = watcher;
        if (waiting_number == MOST_WAITING) {
            write_answers(loop);
        }
    } else {
        replace_error(watcher);
        start_writing(loop, watcher);
    }
}

// The entries that a loader fills in for a function that a library calls.
typedef struct {
    const ElfW(Rela) *first;
    size_t number;
} relocations;

// Find the entry of a function in the table of what a library imports, or NULL.
static void **find_import(const struct link_map *library, const char *name) {
    const ElfW(Sym) *symbols = NULL;
    const char *names = NULL;
    relocations of_calls = {NULL, 0}, of_data = {NULL, 0};
    bool with_addends = true;
    for (const ElfW(Dyn) *entry = library->l_ld; entry->d_tag != DT_NULL; entry++) {
        // Some loaders add the library's address to these, others do not.
        ElfW(Addr) address = entry->d_un.d_ptr < library->l_addr ? entry->d_un.d_ptr + library->l_addr
                                                                 : entry->d_un.d_ptr;
        switch (entry->d_tag) {
            case DT_SYMTAB: symbols = (const ElfW(Sym) *)address; break;
            case DT_STRTAB: names = (const char *)address; break;
            case DT_JMPREL: of_calls.first = (const ElfW(Rela) *)address; break;
            case DT_PLTRELSZ: of_calls.number = entry->d_un.d_val / sizeof(ElfW(Rela)); break;
            case DT_PLTREL: with_addends = entry->d_un.d_val == DT_RELA; break;
            case DT_RELA: of_data.first = (const ElfW(Rela) *)address; break;
            case DT_RELASZ: of_data.number = entry->d_un.d_val / sizeof(ElfW(Rela)); break;
        }
    }
    if (symbols == NULL || names == NULL || !with_addends) {
        return NULL;
    }
    const relocations tables[] = {of_calls, of_data};
    for (size_t table = 0; table < 2; table++) {
        for (size_t i = 0; tables[table].first != NULL && i < tables[table].number; i++) {
            const ElfW(Rela) *relocation = &tables[table].first[i];
            if (strcmp(names + symbols[ELF64_R_SYM(relocation->r_info)].st_name, name) == 0) {
                return (void **)(library->l_addr + relocation->r_offset);
            }
        }
    }
    return NULL;
}

typedef struct {
    uintptr_t address;
    bool protected;
} protected_page;

// Tell whether a page is one that the loader makes read-only once it has filled in the entries (PT_GNU_RELRO).
static int find_protection(struct dl_phdr_info *library, size_t size, void *data) {
    protected_page *page = (protected_page *)data;
    uintptr_t page_size = (uintptr_t)sysconf(_SC_PAGESIZE);
    for (int i = 0; i < library->dlpi_phnum; i++) {
        const ElfW(Phdr) *segment = &library->dlpi_phdr[i];
        if (segment->p_type == PT_GNU_RELRO) {
            uintptr_t start = (library->dlpi_addr + segment->p_vaddr) & ~(page_size - 1);
            uintptr_t end = (library->dlpi_addr + segment->p_vaddr + segment->p_memsz) & ~(page_size - 1);
            page->protected |= start <= page->address && page->address < end;
        }
    }
    return 0;
}

// Put a function into an entry. Return whether it could be done.
static bool replace_import(void **entry, watcher_function *function) {
    uintptr_t page_size = (uintptr_t)sysconf(_SC_PAGESIZE);
    protected_page page = {(uintptr_t)entry & ~(page_size - 1), false};
    dl_iterate_phdr(find_protection, &page);
    if (page.protected && mprotect((void *)page.address, page_size, PROT_READ | PROT_WRITE) != 0) {
        return false;
    }
    *entry = (void *)function;
    if (page.protected) {
        mprotect((void *)page.address, page_size, PROT_READ);
    }
    return true;
}

// Replace what bjoern calls to start and stop a watcher, given its function server_run. Return whether it was done;
// where it was not, nothing is changed and bjoern works as ever.
static bool replace_watcher_calls(PyObject *server_run) {
    Dl_info where;
    if (libev_io_start != NULL) {
        return true;
    }
    if (sizeof(void *) != 8 || !PyCFunction_Check(server_run) ||
        dladdr((void *)PyCFunction_GET_FUNCTION(server_run), &where) == 0) {
        return false;
    }
    void *library = dlopen(where.dli_fname, RTLD_NOW | RTLD_NOLOAD);  // a struct link_map, too
    if (library == NULL) {
        return false;
    }
    void **start = find_import((const struct link_map *)library, "ev_io_start");
    void **stop = find_import((const struct link_map *)library, "ev_io_stop");
    libev_prepare_start = (void (*)(struct ev_loop *, ev_prepare *))dlsym(library, "ev_prepare_start");
    libev_unref = (void (*)(struct ev_loop *))dlsym(library, "ev_unref");
    int (*version)(void) = (int (*)(void))dlsym(library, "ev_version_major");
    watcher_function *old_start = (watcher_function *)dlsym(library, "ev_io_start");
    watcher_function *old_stop = (watcher_function *)dlsym(library, "ev_io_stop");
    if (start == NULL || stop == NULL || old_start == NULL || old_stop == NULL || libev_prepare_start == NULL ||
        libev_unref == NULL || version == NULL || version() != EV_VERSION_MAJOR) {
        dlclose(library);
        return false;
    }
    for (int i = 0; i < BARE_ERRORS; i++) {
        bare_error *error = &bare_errors[i];
        error->reply = PyBytes_FromFormat(
            "HTTP/1.1 %s\r\ncontent-length: %zd\r\ncontent-type: application/json\r\nConnection: close\r\n\r\n"
            "{\"Error\":\"%s\"}",
            error->line, (Py_ssize_t)(strlen(error->message) + strlen("{\"Error\":\"\"}")), error->message);
        if (error->reply == NULL) {
            PyErr_Clear();  // this one stays bare
        }
    }
    libev_io_stop = old_stop;
    if (!replace_import(stop, stop_watcher)) {
        return false;
    }
    libev_io_start = old_start;
    if (!replace_import(start, start_watcher)) {
        libev_io_start = NULL;  // nothing is announced then, and the other function does what libev's does
        return false;
    }
    return true;
}

#endif
