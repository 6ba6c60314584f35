/*
 * The pod's first process: it holds the pod's namespaces open, reaps the
 * orphans of containers that share its process namespace, and ends on SIGINT or
 * SIGTERM.
 *
 * It is freestanding (no C library) because one runs for every pod: the whole
 * program is one page instead of the hundreds of kilobytes of a static libc.
 * All signals stay blocked, as blocked signals are queued even for a
 * namespace's pid 1, so no handler, and therefore no libc trampoline, is needed.
 */

#if defined(__x86_64__)
enum { sys_sigprocmask = 14, sys_wait4 = 61, sys_sigtimedwait = 128, sys_exit_group = 231 };

static long syscall4(long n, long a, long b, long c, long d)
{
	long ret;
	register long r10 __asm__("r10") = d;
	__asm__ volatile("syscall" : "=a"(ret)
			 : "a"(n), "D"(a), "S"(b), "d"(c), "r"(r10)
			 : "rcx", "r11", "memory");
	return ret;
}
#elif defined(__aarch64__)
enum { sys_sigprocmask = 135, sys_wait4 = 260, sys_sigtimedwait = 137, sys_exit_group = 94 };

static long syscall4(long n, long a, long b, long c, long d)
{
	register long x8 __asm__("x8") = n;
	register long x0 __asm__("x0") = a;
	register long x1 __asm__("x1") = b;
	register long x2 __asm__("x2") = c;
	register long x3 __asm__("x3") = d;
	__asm__ volatile("svc 0" : "+r"(x0)
			 : "r"(x8), "r"(x1), "r"(x2), "r"(x3)
			 : "memory");
	return x0;
}
#else
#error "pause.c knows x86_64 and aarch64 only"
#endif

enum { sig_int = 2, sig_term = 15, sig_chld = 17, block = 0, no_hang = 1, set_size = 8 };

static void reap(void)
{
	while (syscall4(sys_wait4, -1, 0, no_hang, 0) > 0)
		;
}

void _start(void)
{
	unsigned long all = ~0UL;

	syscall4(sys_sigprocmask, block, (long)&all, 0, set_size);
	/* A child that ended before the mask was set sent its signal in vain. */
	reap();
	for (;;) {
		long sig = syscall4(sys_sigtimedwait, (long)&all, 0, 0, set_size);

		if (sig == sig_chld)
			reap();
		else if (sig == sig_int || sig == sig_term)
			syscall4(sys_exit_group, 0, 0, 0, 0);
	}
}
