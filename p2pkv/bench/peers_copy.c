/* A plain memcpy loop over the memory of another process, for `p2pkv bench peers`.

   peers_copy FD BLOCK_BYTES PER_LEASE BLOCKS LEASES: maps FD, copies LEASES leases of PER_LEASE blocks each into memory
   of its own, one after another round and round, and prints the seconds. */
#define _GNU_SOURCE
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>

static double now(void) {
  struct timespec t;
  clock_gettime(CLOCK_MONOTONIC, &t);
  return (double)t.tv_sec + (double)t.tv_nsec / 1e9;
}

int main(int argc, char **argv) {
  if (argc != 6) return 2;
  int fd = atoi(argv[1]);
  size_t block = strtoull(argv[2], 0, 10), per = strtoull(argv[3], 0, 10), blocks = strtoull(argv[4], 0, 10);
  size_t leases = strtoull(argv[5], 0, 10), total = block * blocks;
  char *from = mmap(0, total, PROT_READ, MAP_SHARED, fd, 0);
  char *to = mmap(0, total, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_POPULATE, -1, 0);
  if (from == MAP_FAILED || to == MAP_FAILED) return 1;
  volatile char sink = 0;
  for (size_t i = 0; i < total; i += 4096) sink ^= from[i], to[i] = 1;
  double began = now();
  for (size_t lease = 0; lease < leases; lease++)
    for (size_t i = 0; i < per; i++) {
      size_t place = (lease * per + i) % blocks * block;
      memcpy(to + place, from + place, block);
    }
  double seconds = now() - began;
  for (size_t i = 0; i < total; i += 4096) sink ^= to[i];
  printf("%.9f %d\n", seconds, sink);
  return 0;
}
