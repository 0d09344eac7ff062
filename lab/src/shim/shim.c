/* Loaded into a sidecar (LD_PRELOAD): tells it another time than the kernel's, that netlink has no buffers, or
 * is slow.
 *
 * What to tell stands in a page that it shares with the lab (`shim.rs`), behind the file descriptor that LAB_SHIM names.
 * Stateless but for one counter, so a fault may begin and end at any instant, and outlives the process.
 *
 * It stands before the C library's functions, and makes the system calls itself. What the C library calls within itself
 * does not come by here; of what a Rust program waits for, a futex with a deadline still follows the kernel's clock.
 */
#include <errno.h>
#include <linux/netlink.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

/* As `Word` in shim.rs. */
struct orders {
	_Atomic int64_t wall;     /* ns by which the wall clock is ahead */
	_Atomic int64_t still;    /* ns for which CLOCK_MONOTONIC stood still */
	_Atomic uint64_t sends;   /* of 100 netlink messages that are sent, so many are refused */
	_Atomic uint64_t answers; /* of 100 netlink messages that come, so many are answered by an error */
	_Atomic uint64_t refused; /* how many were, so far */
	_Atomic int64_t slow;     /* ns that a message to rtnetlink takes */
};

static struct orders none;
static struct orders *orders = &none;
static _Atomic uint64_t calls;

__attribute__((constructor)) static void begin(void)
{
	const char *fd = getenv("LAB_SHIM");
	if (fd) {
		void *page = mmap(NULL, sizeof *orders, PROT_READ | PROT_WRITE, MAP_SHARED, atoi(fd), 0);
		if (page != MAP_FAILED)
			orders = page;
	}
}

int clock_gettime(clockid_t clock, struct timespec *time)
{
	const int64_t second = 1000000000;
	int result = syscall(SYS_clock_gettime, clock, time);
	int64_t shift = 0;
	if (clock == CLOCK_REALTIME || clock == CLOCK_REALTIME_COARSE)
		shift = orders->wall;
	else if (clock == CLOCK_MONOTONIC || clock == CLOCK_MONOTONIC_COARSE || clock == CLOCK_MONOTONIC_RAW)
		shift = -orders->still;
	if (result == 0 && shift != 0) {
		int64_t shown = time->tv_sec * second + time->tv_nsec + shift;
		time->tv_sec = shown / second;
		time->tv_nsec = shown % second;
	}
	return result;
}

static int is_netlink(int fd)
{
	int domain = 0;
	socklen_t size = sizeof domain;
	return getsockopt(fd, SOL_SOCKET, SO_DOMAIN, &domain, &size) == 0 && domain == AF_NETLINK;
}

/* Numbers that look like chance, the same in every process: splitmix64. */
static uint64_t draw(void)
{
	uint64_t z = ++calls * 0x9e3779b97f4a7c15;
	z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9;
	z = (z ^ (z >> 27)) * 0x94d049bb133111eb;
	return z ^ (z >> 31);
}

static int happens(int fd, uint64_t percent)
{
	return percent && is_netlink(fd) && draw() % 100 < percent;
}

static ssize_t refuse(void)
{
	orders->refused++;
	errno = ENOBUFS;
	return -1;
}

/* The kernel carries out a message to rtnetlink while it is sent, when it has a lock that the whole machine shares. */
static void linger(int fd)
{
	int protocol = -1;
	socklen_t size = sizeof protocol;
	int64_t slow = orders->slow;
	struct timespec time = { slow / 1000000000, slow % 1000000000 };
	if (slow && is_netlink(fd) && getsockopt(fd, SOL_SOCKET, SO_PROTOCOL, &protocol, &size) == 0 && protocol == NETLINK_ROUTE)
		syscall(SYS_clock_nanosleep, CLOCK_BOOTTIME, 0, &time, NULL);
}

/* The kernel's error for a socket whose buffer has overrun: told once, before whatever is still in it. Mostly the message
 * is what did not fit, and is gone; or one before it was, and this one comes next. */
static ssize_t overrun(int fd)
{
	char byte;
	/* If every one is to fail, none may stay: the caller would ask for it for ever. */
	if (orders->answers >= 100 || draw() & 1)
		syscall(SYS_recvfrom, fd, &byte, sizeof byte, MSG_DONTWAIT, NULL, NULL);
	return refuse();
}

ssize_t sendto(int fd, const void *bytes, size_t length, int flags, const struct sockaddr *to, socklen_t size)
{
	linger(fd);
	return happens(fd, orders->sends) ? refuse() : syscall(SYS_sendto, fd, bytes, length, flags, to, size);
}

ssize_t send(int fd, const void *bytes, size_t length, int flags)
{
	return sendto(fd, bytes, length, flags, NULL, 0);
}

ssize_t sendmsg(int fd, const struct msghdr *message, int flags)
{
	linger(fd);
	return happens(fd, orders->sends) ? refuse() : syscall(SYS_sendmsg, fd, message, flags);
}

ssize_t recvfrom(int fd, void *bytes, size_t length, int flags, struct sockaddr *from, socklen_t *size)
{
	if (!happens(fd, orders->answers))
		return syscall(SYS_recvfrom, fd, bytes, length, flags, from, size);
	return syscall(SYS_recvfrom, fd, bytes, length, flags | MSG_PEEK, NULL, NULL) < 0 ? -1 : overrun(fd);
}

ssize_t recv(int fd, void *bytes, size_t length, int flags)
{
	return recvfrom(fd, bytes, length, flags, NULL, NULL);
}

ssize_t recvmsg(int fd, struct msghdr *message, int flags)
{
	if (!happens(fd, orders->answers))
		return syscall(SYS_recvmsg, fd, message, flags);
	return syscall(SYS_recvmsg, fd, message, flags | MSG_PEEK) < 0 ? -1 : overrun(fd);
}
