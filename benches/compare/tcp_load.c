/* Asks over short TCP connections: connect, all questions at once, all answers, close, again.
 *
 * dnsperf can do that too (-O num-queries-per-conn), but waits up to a tenth of a second for every new
 * connection, so that a server's CPU time would drown in the clock's grain. What is printed at the end
 * reads like dnsperf's.
 * Usage: tcp_load ADDRESS PORT QUESTIONS SECONDS CONNECTIONS QUERIES
 * QUESTIONS is a file of dnsperf's; QUERIES (1 to 32) are asked on each of CONNECTIONS (to 256) at a time.
 */

#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <netinet/in.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

enum { CONNECTIONS = 256, QUERIES = 32, QUESTION = 320, FRAME = 2 + 65535, GRACE_SECONDS = 2 };

struct question {
    uint16_t length;
    unsigned char octets[QUESTION]; /* the length of RFC 1035 §4.2.2 first */
};

struct connection {
    int sock;
    int unwritten;
    uint32_t awaited; /* a bit for each message ID without its answer */
    size_t held;      /* octets of answers that are not whole yet */
    unsigned char octets[FRAME];
};

static struct question *questions;
static size_t known, next_question;
static struct connection connections[CONNECTIONS];
static struct sockaddr_in server = {.sin_family = AF_INET};
static int queries, events;
static uint64_t sent, completed, lost, octets, codes[16];

static void fail(const char *attempt) {
    perror(attempt);
    exit(1);
}

static double now(void) {
    struct timespec time;
    clock_gettime(CLOCK_MONOTONIC, &time);
    return (double)time.tv_sec + (double)time.tv_nsec / 1e9;
}

static unsigned char *put16(unsigned char *at, unsigned value) {
    at[0] = (unsigned char)(value >> 8);
    at[1] = (unsigned char)value;
    return at + 2;
}

/* "www.example.org A" as a message with an OPT record; 0 if it is none we know. */
static int build(struct question *question, char *line) {
    char *name = strtok(line, " \n"), *type = strtok(NULL, " \n");
    if (!name || !type || strlen(name) > 253)
        return 0;
    unsigned number = !strcmp(type, "A") ? 1 : !strcmp(type, "PTR") ? 12 : !strcmp(type, "AAAA") ? 28 : 0;
    unsigned char *at = question->octets + 4; /* length and ID come later */
    for (int n = 0; n < 5; n++)
        at = put16(at, (unsigned[]){0, 1, 0, 0, 1}[n]);
    for (char *label = strtok(name, "."); label; label = strtok(NULL, ".")) {
        size_t length = strlen(label);
        *at++ = (unsigned char)length;
        memcpy(at, label, length);
        at += length;
    }
    *at++ = 0;
    at = put16(put16(at, number), 1);
    static const unsigned char opt[11] = {0, 0, 41, 4, 208}; /* 1,232 octets (RFC 6891 §6.1.2) */
    memcpy(at, opt, sizeof opt);
    question->length = (uint16_t)(at + sizeof opt - question->octets);
    put16(question->octets, question->length - 2u);
    return number != 0;
}

static void read_questions(const char *path) {
    char line[512];
    FILE *file = fopen(path, "r");
    if (!file)
        fail(path);
    for (size_t room = 0; fgets(line, sizeof line, file);) {
        if (known == room && !(questions = realloc(questions, (room = room * 2 + 1024) * sizeof *questions)))
            fail("realloc");
        if (!build(&questions[known++], line)) {
            fprintf(stderr, "%s:%zu: not a name and A, AAAA or PTR\n", path, known);
            exit(1);
        }
    }
    fclose(file);
    if (!known) {
        fprintf(stderr, "%s: no questions\n", path);
        exit(1);
    }
}

static void start(struct connection *c) {
    c->sock = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK, 0);
    if (c->sock < 0)
        fail("socket");
    c->unwritten = 1;
    c->awaited = 0;
    c->held = 0;
    if (connect(c->sock, (struct sockaddr *)&server, sizeof server) < 0 && errno != EINPROGRESS)
        fail("connect");
    struct epoll_event event = {.events = EPOLLOUT, .data.ptr = c};
    if (epoll_ctl(events, EPOLL_CTL_ADD, c->sock, &event) < 0)
        fail("epoll_ctl");
}

/* Closes; what is not answered by now never will be. */
static void end(struct connection *c) {
    lost += (uint64_t)__builtin_popcount(c->awaited);
    close(c->sock);
    c->sock = -1;
}

/* All questions in one segment (RFC 7766 §6.2.1.1). A new connection's buffer takes them whole. */
static int write_questions(struct connection *c) {
    unsigned char batch[QUERIES * QUESTION];
    size_t length = 0;
    for (int n = 0; n < queries; n++) {
        struct question *question = &questions[next_question++ % known];
        put16(question->octets + 2, (unsigned)n);
        memcpy(batch + length, question->octets, question->length);
        length += question->length;
    }
    c->unwritten = 0;
    c->awaited = (uint32_t)((1ull << queries) - 1);
    sent += (uint64_t)queries;
    struct epoll_event event = {.events = EPOLLIN, .data.ptr = c};
    return send(c->sock, batch, length, MSG_NOSIGNAL) == (ssize_t)length
        && epoll_ctl(events, EPOLL_CTL_MOD, c->sock, &event) == 0;
}

/* 0 when the connection has ended or says what nobody asked. Answers may change places (RFC 7766 §7). */
static int read_answers(struct connection *c) {
    ssize_t got = recv(c->sock, c->octets + c->held, sizeof c->octets - c->held, 0);
    if (got <= 0)
        return got < 0 && errno == EAGAIN;
    c->held += (size_t)got;
    unsigned char *at = c->octets, *end = c->octets + c->held;
    while (end - at >= 2) {
        size_t length = (size_t)(at[0] << 8 | at[1]);
        if ((size_t)(end - at) < 2 + length)
            break;
        unsigned id = length < 12 ? QUERIES : (unsigned)(at[2] << 8 | at[3]);
        if (id >= QUERIES || !(c->awaited & 1u << id))
            return 0;
        c->awaited &= ~(1u << id);
        completed++;
        octets += length;
        codes[at[5] & 15]++;
        at += 2 + length;
    }
    c->held = (size_t)(end - at);
    memmove(c->octets, at, c->held);
    return 1;
}

static void report(double seconds) {
    static const char *const names[16] = {"NOERROR", "FORMERR", "SERVFAIL", "NXDOMAIN", "NOTIMP", "REFUSED"};
    printf("Queries sent: %lu\nQueries completed: %lu\nQueries lost: %lu\nResponse codes:", sent, completed, lost);
    for (int n = 0; n < 16; n++)
        if (codes[n])
            printf(" %s %lu (%.2f%%)", names[n] ? names[n] : "OTHER", codes[n], 100.0 * (double)codes[n] / (double)completed);
    printf("\nAverage packet size: response %lu\nRun time (s): %.6f\n", completed ? octets / completed : 0, seconds);
}

int main(int count, char **words) {
    if (count != 7 || inet_pton(AF_INET, words[1], &server.sin_addr) != 1) {
        fprintf(stderr, "usage: tcp_load ADDRESS PORT QUESTIONS SECONDS CONNECTIONS QUERIES\n");
        return 2;
    }
    server.sin_port = htons((unsigned short)atoi(words[2]));
    read_questions(words[3]);
    double begun = now(), stop = begun + atof(words[4]);
    int open = atoi(words[5]);
    queries = atoi(words[6]);
    if (open < 1 || open > CONNECTIONS || queries < 1 || queries > QUERIES) {
        fprintf(stderr, "tcp_load: 1 to %d connections of 1 to %d queries\n", CONNECTIONS, QUERIES);
        return 2;
    }
    if ((events = epoll_create1(0)) < 0)
        fail("epoll_create1");
    for (int n = 0; n < open; n++)
        start(&connections[n]);
    while (open && now() < stop + GRACE_SECONDS) {
        struct epoll_event ready[CONNECTIONS];
        int came = epoll_wait(events, ready, CONNECTIONS, 100);
        for (int n = 0; n < came; n++) {
            struct connection *c = ready[n].data.ptr;
            int fine = c->unwritten ? write_questions(c) : read_answers(c);
            if (fine && c->awaited)
                continue;
            end(c);
            if (now() < stop)
                start(c);
            else
                open--;
        }
    }
    for (int n = 0; n < CONNECTIONS; n++)
        if (connections[n].sock > 0)
            end(&connections[n]);
    report(now() - begun);
}
