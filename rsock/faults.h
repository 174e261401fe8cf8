/* SPDX-License-Identifier: BSD-2-Clause OR GPL-2.0-only */
/*
 * faults.h - planted faults
 *
 * `make test-sim` builds the simulator (tests/sim) once for each of the first list with the switch set,
 * and the test of the verbs link (tests/remote) for each of the second, and fails when one of them is not
 * caught. A product build never sets any: RS_FAULT(X) is then the constant 0.
 */
#ifndef RSOCK_FAULTS_H
#define RSOCK_FAULTS_H

#ifdef RS_FAULTS_BUILD
#define RS_FAULT_NAMES(X)    \
	X(N_OFF_BY_ONE)      \
	X(MARK_UNCHECKED)    \
	X(NO_MARK)           \
	X(RESUME_RAW)        \
	X(WAIT_RESUME)       \
	X(KEEP_OVERLAP)      \
	X(EARLY_REUSE)       \
	X(FIN_EARLY)         \
	X(CTL_TO_CLOSED)     \
	X(HANDOVER_RECEIVED) \
	X(LOST_WAKEUP)       \
	X(HAVE_UNCHECKED)    \
	X(LATE_OK)           \
	X(READ_PAST_N)       \
	X(SILENT_CUT)        \
	X(CLOSE_EARLY)       \
	X(START_UNCHECKED)   \
	X(FLUSH_FROM_POSTED) \
	X(SHUT_UNANSWERED)   \
	X(SHUT_UNREAD)
#define RS_LINK_FAULT_NAMES(X) \
	X(IMM_LOST)            \
	X(CREDIT_LEAK)         \
	X(ERROR_IGNORED)       \
	X(LATE_WRITE)          \
	X(RETRY_FORGOTTEN)     \
	X(STALL_UNARMED)       \
	X(TIER_LOST)           \
	X(TIER_OF_TAIL)        \
	X(RING_EARLY)          \
	X(SWITCH_UNTOLD)       \
	X(DROP_UNREAD)         \
	X(DROP_UNSENT)
enum rs_fault {
#define X(name) RS_FAULT_ID_##name,
	RS_FAULT_NAMES(X) RS_LINK_FAULT_NAMES(X)
#undef X
};
#define RS_FAULT(name) (RS_FAULT_PLANTED == RS_FAULT_ID_##name)
#else
#define RS_FAULT(name) 0
#endif

#endif
