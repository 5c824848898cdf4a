/* What UDP itself costs: receives up to 64 datagrams at a time and sends each back as it came.
 *
 * No server of datagrams can be cheaper than this on the same machine by the same system calls, and none
 * of our own code is in it: the floor that a DNS server's cost is measured from.
 * Usage: udp_echo ADDRESS PORT (IPv4), built by benches/compare/dns.
 */

#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <netinet/in.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>

enum { BATCH = 64, OCTETS = 4096 };

static unsigned char octets[BATCH][OCTETS];
static struct sockaddr_in peers[BATCH];
static struct iovec parts[BATCH];
static struct mmsghdr messages[BATCH];

static void fail(const char *attempt) {
    perror(attempt);
    exit(1);
}

/* The kernel shortens both lengths to what came; each batch starts with all the room again. */
static void make_room(void) {
    for (int n = 0; n < BATCH; n++) {
        parts[n] = (struct iovec){.iov_base = octets[n], .iov_len = OCTETS};
        messages[n].msg_hdr = (struct msghdr){
            .msg_name = &peers[n], .msg_namelen = sizeof peers[n], .msg_iov = &parts[n], .msg_iovlen = 1};
    }
}

static void send_back(int sock, int count) {
    for (int n = 0; n < count; n++)
        parts[n].iov_len = messages[n].msg_len;
    for (int sent = 0; sent < count;) {
        int more = sendmmsg(sock, messages + sent, (unsigned)(count - sent), 0);
        if (more < 0 && errno == EINTR)
            continue;
        /* A peer that has gone costs its own datagram, not those behind it. */
        sent += more > 0 ? more : 1;
    }
}

int main(int count, char **words) {
    struct sockaddr_in address = {.sin_family = AF_INET};
    if (count != 3 || inet_pton(AF_INET, words[1], &address.sin_addr) != 1) {
        fprintf(stderr, "usage: udp_echo ADDRESS PORT\n");
        return 2;
    }
    address.sin_port = htons((unsigned short)atoi(words[2]));
    int sock = socket(AF_INET, SOCK_DGRAM, 0);
    if (sock < 0)
        fail("socket");
    if (bind(sock, (struct sockaddr *)&address, sizeof address) < 0)
        fail("bind");
    for (;;) {
        make_room();
        /* MSG_WAITFORONE: waits for the first datagram alone, then takes what is there. */
        int got = recvmmsg(sock, messages, BATCH, MSG_WAITFORONE, NULL);
        if (got > 0)
            send_back(sock, got);
        else if (got < 0 && errno != EINTR && errno != ECONNREFUSED)
            fail("recvmmsg");
    }
}
