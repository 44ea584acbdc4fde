// SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause)
/* Carries abi.h and maps.h into BTF for headrace/abi.py; never loaded. */
#include "maps.h"

#define HR_KEEP(kind, name) kind name *keep_##name SEC(".keep")

HR_KEEP(enum, hr_reason);
HR_KEEP(enum, hr_where);
HR_KEEP(enum, hr_flow_flag);
HR_KEEP(enum, hr_state);
HR_KEEP(enum, hr_conn_flag);
HR_KEEP(enum, hr_tcp_known);
HR_KEEP(enum, hr_port_flag);
HR_KEEP(enum, hr_source);
HR_KEEP(enum, hr_adjacency_state);
HR_KEEP(enum, hr_adjacency_flag);
HR_KEEP(enum, hr_config_flag);
HR_KEEP(enum, hr_direction);
HR_KEEP(enum, hr_cursor);
HR_KEEP(struct, hr_conclusion);
HR_KEEP(struct, hr_punt);
HR_KEEP(struct, hr_clocks);
HR_KEEP(struct, hr_bump);
HR_KEEP(struct, hr_unlearning);
HR_KEEP(struct, hr_carry);
HR_KEEP(struct, hr_sample);

char _license[] SEC("license") = "Dual BSD/GPL";
