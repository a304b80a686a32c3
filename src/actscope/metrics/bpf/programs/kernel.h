/* The few kernel types that the programs read, each with the fields that they read. Where a field lies is found at load time
 * (CO-RE: `preserve_access_index`), so one object runs on every kernel from Linux 5.11 on that has BTF. */
#ifndef ACTSCOPE_KERNEL_H
#define ACTSCOPE_KERNEL_H

typedef unsigned char __u8;
typedef unsigned short __u16;
typedef unsigned int __u32;
typedef unsigned long long __u64;
typedef signed char __s8;
typedef short __s16;
typedef int __s32;
typedef long long __s64;
typedef __u16 __be16;
typedef __u32 __be32;
typedef __u32 __wsum;
typedef __u8 u8;
typedef __u32 u32;
typedef __u64 u64;
typedef __s64 s64;
typedef _Bool bool;

enum { BPF_ANY = 0, BPF_NOEXIST = 1 };
enum bpf_map_type { BPF_MAP_TYPE_HASH = 1, BPF_MAP_TYPE_ARRAY = 2, BPF_MAP_TYPE_PERCPU_HASH = 5, BPF_MAP_TYPE_STACK_TRACE = 7, BPF_MAP_TYPE_LRU_HASH = 9 };

#pragma clang attribute push(__attribute__((preserve_access_index)), apply_to = record)

typedef struct {
	int counter;
} atomic_t;

/* block layer */
struct gendisk {
	char disk_name[32];
};

struct request_queue {
	struct gendisk *disk; /* from 5.15 on; before, a request has it */
};

struct block_device {
	atomic_t __bd_flags; /* from 6.10 on; the lowest byte is the number of the partition */
};

struct block_device___before_6_10 {
	u8 bd_partno;
};

struct request {
	struct request_queue *q;
	u32 cmd_flags;
	u32 rq_flags;
	u32 __data_len;
	struct block_device *part;
	u64 start_time_ns;
};

struct request___before_5_15 {
	struct gendisk *rq_disk;
};

/* scheduler */
struct sched_entity {
	u64 sum_exec_runtime;
};

struct task_struct {
	struct sched_entity se;
	u32 __state;
	u32 flags;
	unsigned in_iowait : 1;
	int pid;
	int tgid;
	u64 start_time;
	char comm[16];
};

struct task_struct___before_5_14 {
	long state;
};

/* One object serves both architectures: the fields that a kernel does not have are never read. */
struct pt_regs___x86 {
	unsigned long orig_ax;
};

struct pt_regs___arm64 {
	int syscallno;
};

#pragma clang attribute pop

/* Numbers of the flags since they are an enum (6.11); before, they were macros. */
enum rqf_flags {
	__RQF_FLUSH_SEQ = 1,
	__RQF_IO_STAT = 8,
};

typedef void (*btf_trace_block_io_done)(void *, struct request *);

#endif
