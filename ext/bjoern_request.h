// Which connection a request of bjoern came on.
//
// bjoern tells an application no more than the peer's address. The start_response that it passes knows its request, and
// that knows its descriptor. The layout is that of bjoern 3.2.2 (bjoern/wsgi.c, bjoern/request.h); everything that can be
// checked is, and where a check fails there is no descriptor.
#ifndef PYSERVE_BJOERN_REQUEST_H
#define PYSERVE_BJOERN_REQUEST_H

#include <Python.h>
#include <malloc.h>
#include <stdint.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <sys/stat.h>

typedef struct {
    PyObject_HEAD
    void *request;
} bjoern_start_response;

// In words of a pointer, counted from the parser's pointer back to its own request.
enum { BJOERN_WATCHER_FD = 8, BJOERN_CLIENT_FD = 10, BJOERN_CLIENT_ADDRESS = 11, BJOERN_LONGEST_PARSER = 12 };

// Return the client's descriptor, or -1. The address, where it is not NULL, is the object REMOTE_ADDR of the environ.
static int client_descriptor(PyObject *start_response, const PyObject *address) {
    if (strcmp(Py_TYPE(start_response)->tp_name, "start_response") != 0 ||
        Py_TYPE(start_response)->tp_basicsize != (Py_ssize_t)sizeof(bjoern_start_response)) {
        return -1;
    }
    void *request = ((bjoern_start_response *)start_response)->request;
    size_t words = malloc_usable_size(request) / sizeof(void *);
    void **word = (void **)request;
    for (size_t i = 1; i <= BJOERN_LONGEST_PARSER && i + BJOERN_CLIENT_ADDRESS < words; i++) {
        if (word[i] != request) {
            continue;
        }
        int watched, client;
        struct stat status;
        memcpy(&watched, &word[i + BJOERN_WATCHER_FD], sizeof(int));
        memcpy(&client, &word[i + BJOERN_CLIENT_FD], sizeof(int));
        if (client > 2 && client == watched && (address == NULL || word[i + BJOERN_CLIENT_ADDRESS] == address) &&
            fstat(client, &status) == 0 && S_ISSOCK(status.st_mode)) {
            return client;
        }
        return -1;
    }
    return -1;
}

// Whether the client has taken everything that was written to it.
static int has_taken_all(int descriptor) {
    int unsent = 0;
    return ioctl(descriptor, TIOCOUTQ, &unsent) == 0 && unsent == 0;
}

// End a connection in both directions and throw away what it still holds, so that nothing more is read from it.
static void cut_off(int descriptor) {
    char rest[16384];
    shutdown(descriptor, SHUT_RDWR);
    while (recv(descriptor, rest, sizeof(rest), MSG_DONTWAIT) > 0) {
    }
}

#endif
