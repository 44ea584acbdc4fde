/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* A load that is only asked what it would do, for `headrace trace`: on no device, on the tables of those that carry traffic, and
 * writing none of them. Whoever writes a table or sends a frame asks hr_dry first; being read-only data, it costs nothing.
 */
#ifndef HR_DRY_H
#define HR_DRY_H

#include "lib/base.h"

const volatile __u32 hr_dry = 0;

#endif
