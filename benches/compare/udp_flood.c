/* Floods a DNS server with questions for random names, at a steady rate, from one address.
 *
 * Not by dnsperf: it waits for the answers that a rate limit keeps back, and so never floods for long.
 * What is printed at the end reads like dnsperf's.
 * Usage: udp_flood ADDRESS PORT SOURCE ORIGIN SECONDS RATE
 */

#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <netinet/in.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <time.h>

enum { BATCH = 64, OCTETS = 512, NAME = 16, SOCKETS = 8 };

static unsigned char octets[BATCH][OCTETS], answers[BATCH][OCTETS];
static struct mmsghdr out[BATCH], in[BATCH];
static struct iovec out_parts[BATCH], in_parts[BATCH];

static void fail(const char *attempt) {
    perror(attempt);
    exit(1);
}

static double now(void) {
    struct timespec time;
    clock_gettime(CLOCK_MONOTONIC, &time);
    return (double)time.tv_sec + (double)time.tv_nsec / 1e9;
}

/* xorshift64*: quick, and the same names at every run. */
static uint64_t chance(void) {
    static uint64_t state = 0x9E3779B97F4A7C15;
    state ^= state >> 12;
    state ^= state << 25;
    state ^= state >> 27;
    return state * 0x2545F4914F6CDD1D;
}

/* A question of type A for sixteen letters below the origin, with an OPT record (RFC 6891 §6.1.2). */
static size_t build(unsigned char *at, const char *origin) {
    static const unsigned char head[12] = {[5] = 1, [11] = 1}, tail[16] = {0, 0, 1, 0, 1, 0, 0, 41, 4, 208};
    unsigned char *begin = at;
    char name[256];
    snprintf(name, sizeof name, "%016d.%s", 0, origin);
    memcpy(at, head, sizeof head);
    at += sizeof head;
    for (char *label = strtok(name, "."); label; label = strtok(NULL, ".")) {
        *at = (unsigned char)strlen(label);
        memcpy(at + 1, label, *at);
        at += 1 + *at;
    }
    memcpy(at, tail, sizeof tail);
    return (size_t)(at + sizeof tail - begin);
}

static void prepare(const char *origin) {
    for (int n = 0; n < BATCH; n++) {
        out_parts[n] = (struct iovec){octets[n], build(octets[n], origin)};
        in_parts[n] = (struct iovec){answers[n], OCTETS};
        out[n].msg_hdr = (struct msghdr){.msg_iov = &out_parts[n], .msg_iovlen = 1};
        in[n].msg_hdr = (struct msghdr){.msg_iov = &in_parts[n], .msg_iovlen = 1};
    }
}

static int open_socket(const char *source, const struct sockaddr_in *server) {
    struct sockaddr_in own = {.sin_family = AF_INET};
    int sock = socket(AF_INET, SOCK_DGRAM | SOCK_NONBLOCK, 0);
    if (inet_pton(AF_INET, source, &own.sin_addr) != 1 || sock < 0 || bind(sock, (struct sockaddr *)&own, sizeof own) < 0)
        fail(source);
    if (connect(sock, (const struct sockaddr *)server, sizeof *server) < 0)
        fail("connect");
    return sock;
}

static int send_some(int sock, int count) {
    for (int n = 0; n < count; n++) {
        uint64_t drawn = chance();
        memcpy(octets[n], &drawn, 2); /* the message's ID */
        for (int letter = 0; letter < NAME; letter++, drawn >>= 4)
            octets[n][13 + letter] = (unsigned char)('a' + (drawn & 15));
    }
    int done = sendmmsg(sock, out, (unsigned)count, 0);
    return done > 0 ? done : 0;
}

int main(int count, char **words) {
    struct sockaddr_in server = {.sin_family = AF_INET};
    if (count != 7 || inet_pton(AF_INET, words[1], &server.sin_addr) != 1 || strlen(words[4]) > 200) {
        fprintf(stderr, "usage: udp_flood ADDRESS PORT SOURCE ORIGIN SECONDS RATE\n");
        return 2;
    }
    server.sin_port = htons((unsigned short)atoi(words[2]));
    int socks[SOCKETS];
    for (int n = 0; n < SOCKETS; n++)
        socks[n] = open_socket(words[3], &server);
    prepare(words[4]);
    double begun = now(), seconds = atof(words[5]), rate = atof(words[6]), passed;
    uint64_t sent = 0, answered = 0;
    for (int turn = 0; (passed = now() - begun) < seconds; turn++) {
        int sock = socks[turn % SOCKETS], got;
        double due = passed * rate - (double)sent;
        if (due < BATCH / 4)
            nanosleep(&(struct timespec){.tv_nsec = 50000}, NULL);
        else
            sent += (uint64_t)send_some(sock, due < BATCH ? (int)due : BATCH);
        while ((got = recvmmsg(sock, in, BATCH, 0, NULL)) > 0)
            answered += (uint64_t)got;
    }
    printf("Queries sent: %lu\nQueries completed: %lu\nQueries lost: %lu\nAverage packet size: response 0\nRun time (s): %.6f\n",
           sent, answered, sent > answered ? sent - answered : 0, passed);
}
