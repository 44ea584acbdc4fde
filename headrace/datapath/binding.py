"""libbpf's C functions as Python sees them: declarations, the loaded library, its log and its errors.

Sources: ``bpf/libbpf.h``, ``bpf/bpf.h`` and ``bpf/btf.h`` of libbpf 1.1, ``linux/bpf.h`` of Linux 6.1.
The library is loaded in ABI mode, so no compiler is needed where Headrace is installed.
"""

from __future__ import annotations

import contextlib
import errno
import os
import threading
from collections import deque
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from cffi import FFI

from headrace.errors import DatapathError

DECLARATIONS = """
typedef uint8_t __u8; typedef uint16_t __u16; typedef int32_t __s32; typedef uint32_t __u32; typedef uint64_t __u64;
struct bpf_object; struct bpf_map; struct bpf_program; struct btf; struct ring_buffer;

typedef int (*libbpf_print_fn_t)(int level, const char *format, void *arguments);
libbpf_print_fn_t libbpf_set_print(libbpf_print_fn_t fn);
int libbpf_num_possible_cpus(void);

struct bpf_object_open_opts {
    size_t sz; const char *object_name; bool relaxed_maps; const char *pin_root_path; __u32 stub;
    const char *kconfig; const char *btf_custom_path;
    char *kernel_log_buf; size_t kernel_log_size; __u32 kernel_log_level; __u32 pad;
};
struct bpf_object *bpf_object__open_file(const char *path, const struct bpf_object_open_opts *opts);
int bpf_object__load(struct bpf_object *obj);
void bpf_object__close(struct bpf_object *obj);
struct btf *bpf_object__btf(const struct bpf_object *obj);
struct bpf_map *bpf_object__find_map_by_name(const struct bpf_object *obj, const char *name);
struct bpf_map *bpf_object__next_map(const struct bpf_object *obj, const struct bpf_map *map);
struct bpf_program *bpf_object__next_program(const struct bpf_object *obj, struct bpf_program *prog);
const char *bpf_map__name(const struct bpf_map *map);
int bpf_map__fd(const struct bpf_map *map);
int bpf_map__set_pin_path(struct bpf_map *map, const char *path);
int bpf_map__set_max_entries(struct bpf_map *map, __u32 max_entries);
void *bpf_map__initial_value(struct bpf_map *map, size_t *psize);
const char *bpf_program__name(const struct bpf_program *prog);
int bpf_program__fd(const struct bpf_program *prog);

struct btf_type { __u32 name_off; __u32 info; __u32 size; };
struct btf_var_secinfo { __u32 type; __u32 offset; __u32 size; };
__u32 btf__type_cnt(const struct btf *btf);
const struct btf_type *btf__type_by_id(const struct btf *btf, __u32 id);
const char *btf__name_by_offset(const struct btf *btf, __u32 offset);
struct btf *btf__load_from_kernel_by_id(__u32 id);
const void *btf__raw_data(const struct btf *btf, __u32 *size);
void btf__free(struct btf *btf);

int bpf_map_lookup_elem(int fd, const void *key, void *value);
int bpf_map_lookup_and_delete_elem(int fd, const void *key, void *value);
int bpf_map_update_elem(int fd, const void *key, const void *value, __u64 flags);
int bpf_map_delete_elem(int fd, const void *key);
int bpf_map_get_next_key(int fd, const void *key, void *next_key);
struct bpf_map_batch_opts { size_t sz; __u64 elem_flags; __u64 flags; };
int bpf_map_lookup_batch(int fd, void *in_batch, void *out_batch, void *keys, void *values, __u32 *count,
                         const struct bpf_map_batch_opts *opts);
int bpf_map_update_batch(int fd, const void *keys, const void *values, __u32 *count,
                         const struct bpf_map_batch_opts *opts);
int bpf_map_delete_batch(int fd, const void *keys, __u32 *count, const struct bpf_map_batch_opts *opts);

int bpf_map_create(int type, const char *name, __u32 key_size, __u32 value_size, __u32 max_entries, const void *opts);
int bpf_obj_pin(int fd, const char *path);
int bpf_obj_get(const char *path);
int bpf_obj_get_info_by_fd(int fd, void *info, __u32 *info_len);
int bpf_enable_stats(int type);
int bpf_link_create(int prog_fd, int target_fd, int attach_type, const void *opts);
struct bpf_link_create_opts {
    size_t sz; __u32 flags; void *iter_info; __u32 iter_info_len; __u32 target_btf_id; __u64 attach[4];
};
int bpf_link_update(int link_fd, int new_prog_fd, const void *opts);
int bpf_link_detach(int link_fd);

struct bpf_prog_query_opts {
    size_t sz; __u32 query_flags; __u32 attach_flags; __u32 *prog_ids; __u32 prog_cnt; __u32 pad;
    __u32 *prog_attach_flags;
};
int bpf_prog_query_opts(int target_fd, int type, struct bpf_prog_query_opts *opts);
int bpf_prog_get_fd_by_id(__u32 id);

struct bpf_test_run_opts {
    size_t sz; const void *data_in; void *data_out; __u32 data_size_in; __u32 data_size_out;
    const void *ctx_in; void *ctx_out; __u32 ctx_size_in; __u32 ctx_size_out;
    __u32 retval; int repeat; __u32 duration; __u32 flags; __u32 cpu; __u32 batch_size;
};
int bpf_prog_test_run_opts(int prog_fd, struct bpf_test_run_opts *opts);

struct bpf_map_info {
    __u32 type; __u32 id; __u32 key_size; __u32 value_size; __u32 max_entries; __u32 map_flags; char name[16];
    __u32 ifindex; __u32 btf_vmlinux_value_type_id; __u64 netns_dev; __u64 netns_ino;
    __u32 btf_id; __u32 btf_key_type_id; __u32 btf_value_type_id; __u32 pad; __u64 map_extra;
};
struct bpf_prog_info {
    __u32 type; __u32 id; __u8 tag[8]; __u32 jited_prog_len; __u32 xlated_prog_len;
    __u64 jited_prog_insns; __u64 xlated_prog_insns; __u64 load_time; __u32 created_by_uid; __u32 nr_map_ids;
    __u64 map_ids; char name[16]; __u32 ifindex; __u32 gpl_compatible; __u64 netns_dev; __u64 netns_ino;
    __u32 nr_jited_ksyms; __u32 nr_jited_func_lens; __u64 jited_ksyms; __u64 jited_func_lens;
    __u32 btf_id; __u32 func_info_rec_size; __u64 func_info; __u32 nr_func_info; __u32 nr_line_info;
    __u64 line_info; __u64 jited_line_info; __u32 nr_jited_line_info; __u32 line_info_rec_size;
    __u32 jited_line_info_rec_size; __u32 nr_prog_tags; __u64 prog_tags;
    __u64 run_time_ns; __u64 run_cnt; __u64 recursion_misses;
    __u32 verified_insns; __u32 attach_btf_obj_id; __u32 attach_btf_id; __u32 pad;
};
struct bpf_link_info {
    __u32 type; __u32 id; __u32 prog_id; __u32 pad; __u32 ifindex; __u32 attach_type; __u64 rest[4];
};

struct bpf_tc_hook { size_t sz; int ifindex; int attach_point; __u32 parent; __u32 pad; };
struct bpf_tc_opts { size_t sz; int prog_fd; __u32 flags; __u32 prog_id; __u32 handle; __u32 priority; __u32 pad; };
int bpf_tc_hook_create(struct bpf_tc_hook *hook);
int bpf_tc_attach(const struct bpf_tc_hook *hook, struct bpf_tc_opts *opts);
int bpf_tc_detach(const struct bpf_tc_hook *hook, const struct bpf_tc_opts *opts);
int bpf_tc_query(const struct bpf_tc_hook *hook, struct bpf_tc_opts *opts);
struct bpf_xdp_query_opts {
    size_t sz; __u32 prog_id; __u32 drv_prog_id; __u32 hw_prog_id; __u32 skb_prog_id; uint8_t attach_mode;
};
int bpf_xdp_query(int ifindex, int flags, struct bpf_xdp_query_opts *opts);

typedef int (*ring_buffer_sample_fn)(void *ctx, void *data, size_t size);
struct ring_buffer *ring_buffer__new(int map_fd, ring_buffer_sample_fn sample, void *ctx, const void *opts);
void ring_buffer__free(struct ring_buffer *rb);
int ring_buffer__poll(struct ring_buffer *rb, int timeout_ms);
int ring_buffer__consume(struct ring_buffer *rb);
int ring_buffer__epoll_fd(const struct ring_buffer *rb);
long syscall(long number, ...);
int vsnprintf(char *buffer, size_t size, const char *format, void *arguments);
"""

ENOTSUPP = 524
"""The kernel's own "operation not supported", which no C library knows (``include/linux/errno.h``)."""

BUNDLED = Path(__file__).parent / "lib" / "libbpf.so.1"
TAIL_LINES = 40
SYS_MEMBARRIER = 324
"""On x86-64 (``arch/x86/entry/syscalls/syscall_64.tbl``)."""
DEBUG = 2

ffi: Any = FFI()
ffi.cdef(DECLARATIONS)
_libc: Any = ffi.dlopen(None)
_log = threading.local()


def _print(level: int, text: Any, arguments: Any) -> int:
    """Keep what libbpf says, for the error message; nothing reaches stderr."""
    if level >= DEBUG:
        return 0
    # vsnprintf uses its va_list up; on x86-64 and arm64 that is a pointer to a struct of at most 32 octets.
    copy = ffi.new("char[32]")
    ffi.memmove(copy, ffi.cast("char *", arguments), 32)
    size = _libc.vsnprintf(ffi.NULL, 0, text, copy) + 1
    buffer = ffi.new("char[]", size)
    _libc.vsnprintf(buffer, size, text, arguments)
    lines = ffi.string(buffer).decode(errors="replace").splitlines()
    _kept().extend(line for line in lines if line.strip())
    return 0


def _kept() -> deque[str]:
    if not hasattr(_log, "lines"):
        _log.lines = deque(maxlen=TAIL_LINES)
    lines: deque[str] = _log.lines
    return lines


def _load() -> Any:
    library: Any = ffi.dlopen(str(BUNDLED) if BUNDLED.exists() else "libbpf.so.1")
    library.libbpf_set_print(_callback)
    return library


_callback = ffi.callback("libbpf_print_fn_t", _print)
lib: Any = _load()


@contextlib.contextmanager
def logged() -> Iterator[None]:
    """Forget older lines of libbpf's log, and silence those of this block unless an error takes them."""
    _kept().clear()
    try:
        yield
    finally:
        _kept().clear()


def wait_for_walks() -> None:
    """Return when every BPF program that runs now has ended: none of them has what it read of the tables any more.

    ``membarrier(MEMBARRIER_CMD_GLOBAL)`` is ``synchronize_rcu()`` (kernel/sched/membarrier.c), in whose read sections
    programs run. A kernel that refuses it (nohz_full) is not waited for: a walk takes microseconds.
    """
    _libc.syscall(ffi.cast("long", SYS_MEMBARRIER), ffi.cast("long", 1), ffi.cast("long", 0), ffi.cast("long", 0))


class Refused(DatapathError):
    """The kernel answered a call with an error number: ``errno``."""

    def __init__(self, what: str, number: int) -> None:
        name = "ENOTSUPP" if number == ENOTSUPP else errno.errorcode.get(number, str(number))
        text = "Not supported by this kernel" if number == ENOTSUPP else os.strerror(number)
        tail = "".join(f"\n    {line}" for line in _kept())
        super().__init__(f"{what}: {text} ({name}){tail}")
        self.errno = number
        _kept().clear()


def check(result: int, what: str) -> int:
    """``result`` when it is no error; libbpf answers a negative error number."""
    if result < 0:
        raise Refused(what, -result)
    return result


def pointer(result: Any, what: str) -> Any:
    """``result`` when it is no NULL."""
    if result == ffi.NULL:
        raise Refused(what, ffi.errno)
    return result


def info(fd: int, kind: str) -> Any:
    """``bpf_obj_get_info_by_fd`` into a ``struct bpf_<kind>_info``; a kernel with a longer one truncates it."""
    answer = ffi.new(f"struct bpf_{kind}_info *")
    size = ffi.new("__u32 *", ffi.sizeof(answer[0]))
    check(lib.bpf_obj_get_info_by_fd(fd, answer, size), f"{kind} behind descriptor {fd}")
    return answer


def get_pinned(path: Path, what: str) -> int:
    """A new descriptor of the object pinned at ``path``."""
    return check(lib.bpf_obj_get(os.fsencode(path)), f"{what} pinned at {path}")


def pin(fd: int, path: Path, what: str) -> None:
    """Pin the object behind ``fd``; its folder is made."""
    path.parent.mkdir(parents=True, exist_ok=True)
    check(lib.bpf_obj_pin(fd, os.fsencode(path)), f"pin {what} at {path}")
