/* Why threads are not running, and their page faults.
 *
 *   sched_switch (out) ──▶ off the CPU, for a cause ──▶ sched_waking ──▶ runnable, but waiting ──▶ sched_switch (in)
 *                                                       (by whom)
 *
 * A thread that is switched out while it could run is "runnable" at once. A thread that is off the CPU when the counts are read
 * has `out_ns` set; the reader adds what has passed since.
 */
#include "kernel.h"
#include <bpf/bpf_helpers.h>
#include <bpf/bpf_core_read.h>
#include <bpf/bpf_tracing.h>

enum cause { RUNNABLE, IO, LOCK, SLEEP, WAIT, FAULT, STOPPED, CAUSES };
enum loss { NO_THREAD_ROOM, NO_STACK_ROOM, REUSED, UNSEEN, LOSSES };

#define TASK_INTERRUPTIBLE 0x1
#define TASK_UNINTERRUPTIBLE 0x2
#define TASK_STOPPED_OR_TRACED 0xc
#define TASK_EXITED 0xb0 /* dead, zombie, TASK_DEAD */
#define TASK_RTLOCK_WAIT 0x1000
#define PF_KTHREAD 0x00200000
#define SYSCALLS 512
#define INTERRUPT 0xffffffff /* in the place of a waker's TID */

struct thread {
	u64 out_ns; /* since when it is off the CPU; 0: it runs */
	u64 woken_ns; /* since when it is runnable again; 0: it is not */
	u64 faults;
	u64 off_ns[CAUSES];
	u64 switches;
	u64 start_time;
	u64 exec_ns; /* time on a CPU in its life, when it was last switched out */
	u32 tgid;
	u32 cause;
	u32 waker;
	u32 waker_tgid;
	int stack;
	u32 gone;
	char waker_comm[16];
	char comm[16];
};

struct wake_key {
	u32 tid;
	u32 waker;
};

struct wake {
	u64 count;
	u64 waited_ns;
	u32 waker_tgid;
	u32 unused;
	char comm[16];
};

struct long_wait_key {
	u32 tid;
	int stack;
	u32 cause;
};

struct long_wait {
	u64 count;
	u64 waited_ns;
};

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 16384);
	__type(key, u32);
	__type(value, struct thread);
} threads SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 1024);
	__type(key, u32);
	__type(value, u32);
} watched SEC(".maps");

/* Who woke the threads of watched processes. The least used are dropped when it is full: these counts are of the frequent ones. */
struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, 4096);
	__type(key, struct wake_key);
	__type(value, struct wake);
} wakes SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 4096);
	__type(key, struct long_wait_key);
	__type(value, struct long_wait);
} long_waits SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_STACK_TRACE);
	__uint(max_entries, 1024);
	__uint(key_size, sizeof(u32));
	__uint(value_size, 32 * sizeof(u64));
} stacks SEC(".maps");

/* Cause of an interruptible wait by the number of the system call. */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, SYSCALLS);
	__type(key, u32);
	__type(value, u32);
} causes SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, LOSSES);
	__type(key, u32);
	__type(value, u64);
} losses SEC(".maps");

/* Set before the programs are loaded; the order is that of bpf/system.py. */
const volatile u32 only_watched = 0;
const volatile u32 stacks_over_us = 0;

static __always_inline void lose(u32 kind)
{
	u64 *count = bpf_map_lookup_elem(&losses, &kind);

	if (count)
		__sync_fetch_and_add(count, 1);
}

static __always_inline bool is_watched(u32 tgid)
{
	return bpf_map_lookup_elem(&watched, &tgid) != 0;
}

static __always_inline bool is_followed(struct task_struct *task)
{
	if (!task->pid || task->flags & PF_KTHREAD)
		return 0;
	return !only_watched || is_watched(task->tgid);
}

/* The counts of a thread, which are made when it is first seen; 0 if there is no room. */
static __noinline struct thread *thread_of(struct task_struct *task)
{
	u32 tid = task->pid;
	struct thread *known = bpf_map_lookup_elem(&threads, &tid);
	struct thread fresh;

	if (known) {
		if (known->start_time && known->start_time != task->start_time)
			lose(REUSED); /* a new thread with the number of one that ended in this interval */
		known->start_time = task->start_time;
		known->tgid = task->tgid;
		return known;
	}
	__builtin_memset(&fresh, 0, sizeof(fresh));
	fresh.tgid = task->tgid;
	fresh.start_time = task->start_time;
	fresh.stack = -1;
	__builtin_memcpy(fresh.comm, task->comm, sizeof(fresh.comm));
	if (bpf_map_update_elem(&threads, &tid, &fresh, BPF_NOEXIST)) {
		lose(NO_THREAD_ROOM);
		return 0;
	}
	return bpf_map_lookup_elem(&threads, &tid);
}

static __always_inline u32 state_of(struct task_struct *task)
{
	struct task_struct___before_5_14 *old = (void *)task;

	if (bpf_core_field_exists(old->state))
		return BPF_CORE_READ(old, state);
	return task->__state;
}

/* The system call that the current thread is in; -1: none, so it is in an exception, which is a page fault where it waits. */
static __always_inline s64 syscall_of_current(void)
{
	void *regs = (void *)bpf_task_pt_regs(bpf_get_current_task_btf());
	struct pt_regs___x86 *x86 = regs;
	struct pt_regs___arm64 *arm64 = regs;

	if (bpf_core_field_exists(x86->orig_ax))
		return (s64)x86->orig_ax;
	if (bpf_core_field_exists(arm64->syscallno))
		return arm64->syscallno;
	return 0;
}

static __always_inline u32 cause_of(struct task_struct *prev, u32 state)
{
	s64 call;
	u32 key, *known;

	if (state & TASK_STOPPED_OR_TRACED)
		return STOPPED;
	call = syscall_of_current();
	if (call < 0)
		return FAULT;
	if (BPF_CORE_READ_BITFIELD(prev, in_iowait))
		return IO;
	if (state & (TASK_UNINTERRUPTIBLE | TASK_RTLOCK_WAIT))
		return LOCK;
	key = call;
	known = bpf_map_lookup_elem(&causes, &key);
	return known && *known < CAUSES ? *known : WAIT;
}

static __always_inline void note_wake(u32 tid, struct thread *thread, u64 waited)
{
	struct wake_key key = {tid, thread->waker};
	struct wake *known = bpf_map_lookup_elem(&wakes, &key);
	struct wake fresh;

	if (known) {
		__sync_fetch_and_add(&known->count, 1);
		__sync_fetch_and_add(&known->waited_ns, waited);
		return;
	}
	__builtin_memset(&fresh, 0, sizeof(fresh));
	fresh.count = 1;
	fresh.waited_ns = waited;
	fresh.waker_tgid = thread->waker_tgid;
	__builtin_memcpy(fresh.comm, thread->waker_comm, sizeof(fresh.comm));
	bpf_map_update_elem(&wakes, &key, &fresh, BPF_ANY);
}

static __always_inline void note_long_wait(u32 tid, struct thread *thread, u64 waited)
{
	struct long_wait_key key = {tid, thread->stack, thread->cause};
	struct long_wait *known = bpf_map_lookup_elem(&long_waits, &key);
	struct long_wait fresh = {1, waited};

	if (known) {
		__sync_fetch_and_add(&known->count, 1);
		__sync_fetch_and_add(&known->waited_ns, waited);
	} else if (bpf_map_update_elem(&long_waits, &key, &fresh, BPF_ANY)) {
		lose(NO_STACK_ROOM);
	}
}

static __noinline void switch_in(struct task_struct *next, u64 now)
{
	struct thread *thread = thread_of(next);
	u32 tid = next->pid, cause;
	u64 out, woken, waited;

	if (!thread || !thread->out_ns)
		return;
	out = thread->out_ns;
	woken = thread->woken_ns;
	cause = thread->cause;
	thread->out_ns = 0; /* first: a reader between these lines sees too little, and the rest the next time */
	thread->woken_ns = 0;
	if (woken < out || woken > now)
		woken = cause == RUNNABLE ? out : now;
	waited = woken - out;
	if (cause < CAUSES)
		thread->off_ns[cause] += waited;
	thread->off_ns[RUNNABLE] += now - woken;
	if (thread->waker && is_watched(thread->tgid))
		note_wake(tid, thread, waited);
	if (thread->stack >= 0 && waited / 1000 >= stacks_over_us)
		note_long_wait(tid, thread, waited);
}

static __always_inline void switch_out(void *ctx, bool preempted, struct task_struct *prev, u32 state, u64 now)
{
	struct thread *thread = thread_of(prev);
	u64 exec = prev->se.sum_exec_runtime, ran;

	if (!thread)
		return;
	if (thread->out_ns && thread->exec_ns) { /* its switch in was not seen: it was as long ago as the thread has run since */
		ran = exec - thread->exec_ns;
		switch_in(prev, ran < now - thread->out_ns ? now - ran : thread->out_ns);
		lose(UNSEEN);
	}
	thread->exec_ns = exec;
	thread->switches++;
	thread->woken_ns = 0;
	thread->waker = 0;
	thread->stack = -1;
	__builtin_memcpy(thread->comm, prev->comm, sizeof(thread->comm));
	if (!preempted && state & TASK_EXITED) {
		thread->out_ns = 0;
		thread->gone = 1;
		return;
	}
	thread->cause = preempted || !state ? RUNNABLE : cause_of(prev, state);
	thread->out_ns = now;
	if (stacks_over_us && thread->cause != RUNNABLE && is_watched(thread->tgid))
		thread->stack = bpf_get_stackid(ctx, &stacks, 0);
}

static __always_inline int on_switch(void *ctx, bool preempted, struct task_struct *prev, struct task_struct *next, u32 state)
{
	u64 now = bpf_ktime_get_ns();

	if (is_followed(prev))
		switch_out(ctx, preempted, prev, state, now);
	if (is_followed(next))
		switch_in(next, now);
	return 0;
}

SEC("tp_btf/sched_switch")
int BPF_PROG(sched_switch, bool preempted, struct task_struct *prev, struct task_struct *next, u32 state)
{
	return on_switch(ctx, preempted, prev, next, state);
}

/* Before 5.18 the tracepoint did not hand over the state. */
SEC("tp_btf/sched_switch")
int BPF_PROG(sched_switch_3, bool preempted, struct task_struct *prev, struct task_struct *next)
{
	return on_switch(ctx, preempted, prev, next, state_of(prev));
}

/* Whether a timer or a device wakes, and not the current thread: it is the idle one, or it was interrupted outside of any system
 * call. An interrupt within a system call is not told apart (the kernel's own count is not to be found without KALLSYMS_ALL). */
static __always_inline bool in_interrupt(struct task_struct *current)
{
	return !current->pid || (!(current->flags & PF_KTHREAD) && syscall_of_current() < 0);
}

SEC("tp_btf/sched_waking")
int BPF_PROG(sched_waking, struct task_struct *task)
{
	u32 tid = task->pid;
	struct thread *thread;
	struct task_struct *waker;

	if (!is_followed(task))
		return 0;
	thread = bpf_map_lookup_elem(&threads, &tid);
	if (!thread || !thread->out_ns || thread->woken_ns || thread->cause == RUNNABLE)
		return 0;
	waker = bpf_get_current_task_btf();
	if (in_interrupt(waker)) {
		thread->waker = INTERRUPT;
		thread->waker_tgid = 0;
		__builtin_memset(thread->waker_comm, 0, sizeof(thread->waker_comm));
	} else {
		thread->waker = waker->pid;
		thread->waker_tgid = waker->tgid;
		__builtin_memcpy(thread->waker_comm, waker->comm, sizeof(thread->waker_comm));
	}
	thread->woken_ns = bpf_ktime_get_ns();
	return 0;
}

/* A thread that has been made, and has not run yet. */
SEC("tp_btf/sched_wakeup_new")
int BPF_PROG(sched_wakeup_new, struct task_struct *task)
{
	struct thread *thread;

	if (!is_followed(task))
		return 0;
	thread = thread_of(task);
	if (thread) {
		thread->cause = RUNNABLE;
		thread->out_ns = bpf_ktime_get_ns();
	}
	return 0;
}

SEC("tp_btf/page_fault_user")
int BPF_PROG(page_fault_user)
{
	struct task_struct *task = bpf_get_current_task_btf();
	struct thread *thread;

	if (is_followed(task)) {
		thread = thread_of(task);
		if (thread)
			thread->faults++;
	}
	return 0;
}

char LICENSE[] SEC("license") = "Dual BSD/GPL";
