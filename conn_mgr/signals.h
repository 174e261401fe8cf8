/* SPDX-License-Identifier: BSD-2-Clause OR GPL-2.0-only */
/*
 * signals.h - what a signal does to a call of ours that sleeps in poll(2)
 *
 * The kernel restarts recv(2) and futex(2) after a handler with SA_RESTART, and poll(2) never
 * (signal(7)). Who sleeps in poll() on behalf of a recv() must do so by itself, and cannot know which
 * handler has run. That does not matter as long as all of the program's handlers agree.
 */
#ifndef CONN_MGR_SIGNALS_H
#define CONN_MGR_SIGNALS_H

enum rs_signals {
	RS_SIGNALS_MIXED, /* they do not, or nobody tells us of changes */
	RS_SIGNALS_RESTART, /* all have SA_RESTART, or there is none */
	RS_SIGNALS_INTERRUPT, /* none has */
};

/* As of now. Cheap: the handlers are looked at after a change only. Any thread. */
enum rs_signals rs_signals_agree(void);
/* A handler was, or may have been, changed; the first call says that all changes will be told. */
void rs_signals_changed(void);

#endif
