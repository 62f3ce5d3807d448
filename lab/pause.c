/* What a sandbox runs: a process that holds the namespaces of a pod and reaps what is orphaned in them. */
#include <signal.h>
#include <stddef.h>
#include <unistd.h>

static void end(int number)
{
	(void)number;
	_exit(0);
}

int main(void)
{
	struct sigaction on_end = {.sa_handler = end};
	/* The kernel then reaps by itself; process 1 obeys only signals that it handles. */
	struct sigaction reaped = {.sa_handler = SIG_IGN};

	sigaction(SIGTERM, &on_end, NULL);
	sigaction(SIGINT, &on_end, NULL);
	sigaction(SIGCHLD, &reaped, NULL);
	for (;;)
		pause();
}
