#define _GNU_SOURCE
#include "transport/door.h"

#include <stddef.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

enum { NAME_DIGITS = 5, VISITORS = 8 };

int shm_door_open(uint32_t *number)
{
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    socklen_t len = sizeof(sa_family_t); /* no name: the kernel gives one */
    int door = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    if (door < 0)
        return -1;
    if (bind(door, (struct sockaddr *)&address, len) != 0 || listen(door, VISITORS) != 0)
        goto failed;
    len = sizeof address;
    if (getsockname(door, (struct sockaddr *)&address, &len) != 0 ||
        len != offsetof(struct sockaddr_un, sun_path) + 1 + NAME_DIGITS)
        goto failed;
    char digits[NAME_DIGITS + 1] = {0};
    memcpy(digits, address.sun_path + 1, NAME_DIGITS);
    *number = (uint32_t)strtoul(digits, NULL, 16);
    return door;
failed:
    close(door);
    return -1;
}

int shm_door_accept(int door)
{
    struct ucred peer;
    socklen_t len = sizeof peer;
    int connection = accept4(door, NULL, NULL, SOCK_CLOEXEC);
    if (connection >= 0 &&
        (getsockopt(connection, SOL_SOCKET, SO_PEERCRED, &peer, &len) != 0 || peer.uid != geteuid())) {
        close(connection);
        return -1;
    }
    return connection;
}
