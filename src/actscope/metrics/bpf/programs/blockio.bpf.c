/* Latency histograms and requests in flight of every block device.
 *
 * A request is known by its address, from its first issue to its end:
 *
 *   rq_issue ──▶ in the driver ──▶ rq_complete (all bytes) ──▶ io_done: counted
 *                 ▲      │
 *                 └──────┴ rq_requeue: the driver had no room; issued again, and timed from the first issue on
 *
 * A request is counted where the kernel counts it for /proc/diskstats, so the counts are equal. Requests that were never issued
 * (an fsync without data, which waits for a flush) or were issued before the programs were attached are timed from their start.
 */
#include "kernel.h"
#include <bpf/bpf_helpers.h>
#include <bpf/bpf_core_read.h>
#include <bpf/bpf_tracing.h>

#define SLOTS 27 /* the last one, from 2^26 us (67 s) on, is open */

enum operation { READ, WRITE, DISCARD, FLUSH, PASSTHROUGH };
enum loss { NO_ROOM, NO_DEVICE_ROOM, STALE, LOSSES };

struct device {
	char disk[32];
	u32 partition;
	u32 operation;
};

struct flight {
	struct device device;
	u64 issued_ns;
	u64 started_ns; /* the request's own; another one tells that the address was used again */
	u64 completed_ns; /* end of its data, if a flush follows; else 0 */
	u32 bytes;
	u32 requeues;
	u32 in_driver;
	u32 accounted;
};

struct totals {
	u64 count;
	u64 latency_ns;
	u64 queue_ns;
	u64 bytes;
	u64 requeues;
	u64 slots[SLOTS];
};

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 16384);
	__type(key, u64);
	__type(value, struct flight);
} flights SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_HASH);
	__uint(max_entries, 512);
	__type(key, struct device);
	__type(value, struct totals);
} devices SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, LOSSES);
	__type(key, u32);
	__type(value, u64);
} losses SEC(".maps");

/* For tests: count at rq_complete, as on kernels before 6.5. */
const volatile u32 without_io_done = 0;

static const struct totals nothing;

static __always_inline void lose(u32 kind)
{
	u64 *count = bpf_map_lookup_elem(&losses, &kind);

	if (count)
		__sync_fetch_and_add(count, 1);
}

static __always_inline bool has_io_done(void)
{
	return !without_io_done && bpf_core_type_exists(btf_trace_block_io_done);
}

static __always_inline u32 flag_io_stat(void)
{
	if (bpf_core_enum_value_exists(enum rqf_flags, __RQF_IO_STAT))
		return 1u << bpf_core_enum_value(enum rqf_flags, __RQF_IO_STAT);
	return 1u << 13;
}

static __always_inline u32 flag_flush_seq(void)
{
	if (bpf_core_enum_value_exists(enum rqf_flags, __RQF_FLUSH_SEQ))
		return 1u << bpf_core_enum_value(enum rqf_flags, __RQF_FLUSH_SEQ);
	return 1u << 4;
}

/* As op_stat_group of the kernel, and apart from it flushes and what is not in the kernel's statistics. */
static __always_inline u32 operation_of(struct request *rq, u32 flags)
{
	u32 op = BPF_CORE_READ(rq, cmd_flags) & 0xff;

	if (op == 2)
		return FLUSH;
	if (!(flags & flag_io_stat()))
		return PASSTHROUGH;
	if (op == 3)
		return DISCARD;
	return op & 1 ? WRITE : READ;
}

static __noinline void name_device(struct request *rq, u32 flags, struct device *device)
{
	struct request___before_5_15 *old = (void *)rq;
	struct block_device___before_6_10 *old_part;
	struct block_device *part = BPF_CORE_READ(rq, part);
	struct gendisk *disk = 0;

	__builtin_memset(device, 0, sizeof(*device));
	if (bpf_core_field_exists(old->rq_disk))
		disk = BPF_CORE_READ(old, rq_disk);
	else
		disk = BPF_CORE_READ(rq, q, disk);
	if (disk)
		bpf_probe_read_kernel_str(device->disk, sizeof(device->disk), disk->disk_name);
	device->operation = operation_of(rq, flags);
	if (!part)
		return;
	old_part = (void *)part;
	if (bpf_core_field_exists(old_part->bd_partno))
		device->partition = BPF_CORE_READ(old_part, bd_partno);
	else
		device->partition = BPF_CORE_READ(part, __bd_flags.counter) & 0xff;
}

static __always_inline u32 slot_of(u64 ns)
{
	u64 us = ns / 1000;
	u32 slot = 0;

#pragma unroll
	for (int shift = 16; shift; shift >>= 1)
		if (us >> shift) {
			us >>= shift;
			slot += shift;
		}
	return slot < SLOTS ? slot : SLOTS - 1;
}

static __always_inline void count(struct device *device, u64 latency, u64 queue, u64 bytes, u32 requeues)
{
	struct totals *totals = bpf_map_lookup_elem(&devices, device);
	u32 slot = slot_of(latency);

	if (!totals) {
		bpf_map_update_elem(&devices, device, &nothing, BPF_NOEXIST);
		totals = bpf_map_lookup_elem(&devices, device);
		if (!totals) {
			lose(NO_DEVICE_ROOM);
			return;
		}
	}
	/* a flush may end in an interrupt that interrupts this very program: adding is atomic, although the map is per CPU */
	__sync_fetch_and_add(&totals->count, 1);
	__sync_fetch_and_add(&totals->latency_ns, latency);
	__sync_fetch_and_add(&totals->queue_ns, queue);
	__sync_fetch_and_add(&totals->bytes, bytes);
	__sync_fetch_and_add(&totals->requeues, requeues);
	if (slot < SLOTS)
		__sync_fetch_and_add(&totals->slots[slot], 1);
}

static __always_inline u64 since(u64 begin, u64 end)
{
	return end > begin ? end - begin : 0;
}

static __noinline void finish(struct request *rq, u32 flags)
{
	u64 key = (u64)rq, now = bpf_ktime_get_ns(), started = BPF_CORE_READ(rq, start_time_ns);
	struct flight *flight = bpf_map_lookup_elem(&flights, &key);
	struct device device;

	if (flight && flight->started_ns == started) {
		u64 end = flight->completed_ns ? flight->completed_ns : now;
		u64 queue = started ? since(started, flight->issued_ns) : 0;

		count(&flight->device, since(flight->issued_ns, end), queue, flight->bytes, flight->requeues);
	} else {
		name_device(rq, flags, &device);
		count(&device, started ? since(started, now) : 0, 0, 0, 0);
	}
	if (flight)
		bpf_map_delete_elem(&flights, &key);
}

SEC("raw_tp/block_rq_issue")
int BPF_PROG(rq_issue, struct request *rq)
{
	u64 key = (u64)rq, started = BPF_CORE_READ(rq, start_time_ns);
	struct flight *known = bpf_map_lookup_elem(&flights, &key);
	u32 flags = BPF_CORE_READ(rq, rq_flags);
	struct flight flight;

	if (known && known->started_ns == started && !known->in_driver) {
		known->in_driver = 1; /* it was requeued */
		return 0;
	}
	if (known)
		lose(STALE);
	__builtin_memset(&flight, 0, sizeof(flight));
	name_device(rq, flags, &flight.device);
	flight.issued_ns = bpf_ktime_get_ns();
	flight.started_ns = started;
	flight.bytes = BPF_CORE_READ(rq, __data_len);
	flight.in_driver = 1;
	flight.accounted = !!(flags & flag_io_stat());
	if (bpf_map_update_elem(&flights, &key, &flight, BPF_ANY))
		lose(NO_ROOM);
	return 0;
}

SEC("raw_tp/block_rq_requeue")
int BPF_PROG(rq_requeue, struct request *rq)
{
	u64 key = (u64)rq;
	struct flight *flight = bpf_map_lookup_elem(&flights, &key);

	if (flight) {
		flight->in_driver = 0;
		flight->requeues++;
	}
	return 0;
}

/* This request has become part of another one, and will not be completed. */
SEC("raw_tp/block_rq_merge")
int BPF_PROG(rq_merge, struct request *rq)
{
	u64 key = (u64)rq;

	bpf_map_delete_elem(&flights, &key);
	return 0;
}

SEC("raw_tp/block_rq_complete")
int BPF_PROG(rq_complete, struct request *rq, int error, u32 nr_bytes)
{
	u64 key = (u64)rq;
	u32 flags = BPF_CORE_READ(rq, rq_flags);
	struct flight *flight;

	if (nr_bytes < BPF_CORE_READ(rq, __data_len))
		return 0; /* a part of it: the rest follows */
	if (flags & flag_flush_seq() && (BPF_CORE_READ(rq, cmd_flags) & 0xff) != 2) {
		flight = bpf_map_lookup_elem(&flights, &key); /* its data is written; a flush follows */
		if (flight) {
			flight->completed_ns = bpf_ktime_get_ns();
			flight->in_driver = 0;
		}
		return 0;
	}
	if (!has_io_done() || flags & flag_flush_seq() || !(flags & flag_io_stat()))
		finish(rq, flags);
	return 0;
}

SEC("raw_tp/block_io_done")
int BPF_PROG(io_done, struct request *rq)
{
	u32 flags = BPF_CORE_READ(rq, rq_flags);

	if (has_io_done() && flags & flag_io_stat() && !(flags & flag_flush_seq()))
		finish(rq, flags);
	return 0;
}

char LICENSE[] SEC("license") = "Dual BSD/GPL";
