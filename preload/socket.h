/* SPDX-License-Identifier: BSD-2-Clause OR GPL-2.0-only */
/*
 * socket.h - what other parts of the preload need of socket.c
 */
#ifndef PRELOAD_SOCKET_H
#define PRELOAD_SOCKET_H

/* Somebody else (stdio) is about to close `fd`: drop what is known of it. */
void rs_socket_forget(int fd);
/* As pidfd_getfd(2): what it gives may be a duplicate of a socket that this process has. */
int rs_socket_pidfd_getfd(int pidfd, int fd, unsigned int flags);
/* An unconnected TCP socket is put into an epoll set: it may be connected later. */
void rs_socket_watched(int fd);

#endif
