# SPDX-License-Identifier: BSD-2-Clause OR GPL-2.0-only
#
# `make help` lists the targets. Variables: V=1 (show commands), BUILD, PREFIX, DESTDIR, CC, CFLAGS,
# SAN=address,undefined|thread (see test-asan, test-tsan).

RELEASE := 0.1.0
VERSION := $(or $(shell git describe --always --dirty 2>/dev/null),$(RELEASE))

BUILD ?= build
PREFIX ?= /usr/local
DESTDIR ?=
BINDIR := $(DESTDIR)$(PREFIX)/bin
LIBDIR := $(DESTDIR)$(PREFIX)/lib
INCDIR := $(DESTDIR)$(PREFIX)/include
MANDIR := $(DESTDIR)$(PREFIX)/share/man/man1

# ---- flags ----

CFLAGS ?= -O2 -g
WARNINGS := -Wall -Wextra -Wshadow -Wconversion -Wstrict-prototypes -Wmissing-prototypes \
	-Wpointer-arith -Wundef -Wvla -Wformat=2 -Werror
RS_CFLAGS := -std=gnu17 -D_GNU_SOURCE= -I. -fPIC -fvisibility=hidden -pthread $(WARNINGS) $(CFLAGS)
RS_LDFLAGS := -pthread $(LDFLAGS)
SAN ?=
ifneq ($(SAN),)
RS_CFLAGS += -O1 -fsanitize=$(SAN) -fno-sanitize-recover=all -fno-omit-frame-pointer
RS_LDFLAGS += -fsanitize=$(SAN)
endif

# Short output: `$(call say,CC,name)command` prints "  CC      name" unless V=1.
ifeq ($(V),1)
Q :=
say =
else
Q := @
say = @printf '  %-7s %s\n' '$(1)' '$(2)';
MAKEFLAGS += --no-print-directory
endif

# ---- files ----

# In tests/unit, tests/stress, tests/conformance, tests/luck, tests/apps, bench and examples every .c file
# is a program, except that lib*.c are linked into each program of their folder.
obj = $(patsubst %.c,$(BUILD)/obj/%.o,$(1))
programs-in = $(patsubst %.c,$(BUILD)/%,$(filter-out $(1)/lib%,$(wildcard $(1)/*.c)))

LIB_SRC := $(wildcard rsock/*.c conn_mgr/*.c preload/*.c)
CORE_OBJ := $(call obj,$(wildcard rsock/*.c))
ALL_OBJ := $(call obj,$(LIB_SRC))
API_OBJ := $(call obj,$(filter-out preload/interpose%,$(LIB_SRC)))
TOOL_OBJ := $(call obj,$(wildcard tools/*.c))

PRELOAD_LIB := $(BUILD)/librsock-preload.so
API_LIB := $(BUILD)/librsock.so.0
RDMA_LIB := $(BUILD)/librsock-rdma.so
CORE_LIB := $(BUILD)/librsock-core.a
TOOL := $(BUILD)/rsock

UNIT := $(call programs-in,tests/unit)
STRESS := $(call programs-in,tests/stress)
CONFORMANCE := $(call programs-in,tests/conformance)
LUCK := $(call programs-in,tests/luck) $(BUILD)/tests/luck/luck-static
APPS := $(call programs-in,tests/apps)
BENCH := $(call programs-in,bench)
FUZZ := $(call programs-in,tests/fuzz)
EXAMPLES := $(call programs-in,examples)

# The simulator drives only these files; it is built once as it is and once per planted fault.
SIM_CORE := $(wildcard $(addprefix rsock/,stream.c wire.c mac.c reason.c))
SIM_SRC := $(wildcard tests/sim/*.c)
SIM := $(if $(SIM_SRC),$(BUILD)/tests/sim/sim)
# The names in a list of rsock/faults.h.
faults-of = $(shell sed -n '/define $(1)(X)/,/[^\\]$$/s/^[[:space:]]*X(\([A-Z0-9_]*\)).*/\1/p' rsock/faults.h)
SIM_FAULTS := $(addprefix $(BUILD)/tests/sim/sim-,$(call faults-of,RS_FAULT_NAMES))

# The verbs link over model queue pairs, likewise.
REMOTE_SRC := tests/remote/remote.c
REMOTE_CORE := $(addprefix rsock/,remote.c shm.c bell.c lock.c sys.c wire.c mac.c)
REMOTE := $(BUILD)/tests/remote/remote
SIM_FAULTS += $(addprefix $(REMOTE)-,$(call faults-of,RS_LINK_FAULT_NAMES))

PROGRAMS := $(UNIT) $(STRESS) $(SIM) $(REMOTE) $(SIM_FAULTS) $(CONFORMANCE) $(LUCK) $(APPS) $(BENCH) $(EXAMPLES)

# ---- build ----

.PHONY: all programs
all: $(PRELOAD_LIB) $(API_LIB) $(BUILD)/librsock.so $(RDMA_LIB) $(TOOL)
programs: $(PROGRAMS)

$(BUILD)/obj/%.o: %.c
	@mkdir -p $(@D)
	$(call say,CC,$<)$(CC) $(RS_CFLAGS) -MMD -MP -c -o $@ $<

-include $(shell find $(BUILD)/obj -name '*.d' 2>/dev/null)

# -Bsymbolic-functions: a program may have functions of the same names, which are not meant here.
$(PRELOAD_LIB): $(ALL_OBJ) preload/librsock-preload.map
	$(call say,LD,$(@F))$(CC) -shared $(RS_LDFLAGS) -Wl,--version-script=preload/librsock-preload.map \
		-Wl,-Bsymbolic-functions -Wl,-z,nodelete -Wl,-z,initfirst -Wl,-z,defs -o $@ $(ALL_OBJ)

$(API_LIB): $(API_OBJ) rsock/librsock.map
	$(call say,LD,$(@F))$(CC) -shared $(RS_LDFLAGS) -Wl,--version-script=rsock/librsock.map \
		-Wl,-soname,librsock.so.0 -Wl,-z,nodelete -Wl,-z,defs -o $@ $(API_OBJ)

NL_CFLAGS = $(shell pkg-config --cflags libnl-route-3.0)
NL_LIBS = $(shell pkg-config --libs libnl-route-3.0)
$(BUILD)/obj/rsock/rdma/%.o: RS_CFLAGS += $(NL_CFLAGS)
$(RDMA_LIB): $(call obj,$(wildcard rsock/rdma/*.c))
	$(call say,LD,$(@F))$(CC) -shared $(RS_LDFLAGS) -Wl,-z,defs -o $@ $^ -lrdmacm -libverbs $(NL_LIBS)

$(BUILD)/librsock.so: $(API_LIB)
	$(Q)ln -sf $(<F) $@

$(CORE_LIB): $(CORE_OBJ)
	$(call say,AR,$(@F))rm -f $@ && $(AR) rcs $@ $(CORE_OBJ)

$(TOOL): $(TOOL_OBJ) $(CORE_LIB)
	$(call say,LD,$(@F))$(CC) $(RS_LDFLAGS) -o $@ $^

# The version is a header of its own, rewritten only when it changes.
$(BUILD)/version.h: FORCE
	@mkdir -p $(@D)
	@echo '#define RSOCK_VERSION "$(VERSION)"' | cmp -s - $@ || \
		echo '#define RSOCK_VERSION "$(VERSION)"' >$@
$(BUILD)/obj/tools/rsock.o: RS_CFLAGS += -include $(BUILD)/version.h
$(BUILD)/obj/tools/rsock.o: | $(BUILD)/version.h
.PHONY: FORCE

# program-rule folder,prerequisites,libraries
comma := ,
EXAMPLE_LIBS = -Wl,--as-needed -Wl,-rpath,'$$$$ORIGIN/..' $(API_LIB)
define program-rule
$(BUILD)/$(1)/%: $(BUILD)/obj/$(1)/%.o $(call obj,$(wildcard $(1)/lib*.c)) $(2)
	@mkdir -p $$(@D)
	$$(call say,LD,$(1)/$$*)$$(CC) $$(RS_LDFLAGS) -o $$@ $$(filter %.o,$$^) $(3)
endef
$(eval $(call program-rule,tests/unit,$(API_OBJ) $(call obj,rsock/rdma/choose.c rsock/rdma/iwarp.c),-lcmocka))
$(eval $(call program-rule,tests/stress,$(API_OBJ),-lm))
$(eval $(call program-rule,tests/conformance,,))
$(eval $(call program-rule,tests/luck,,))
$(eval $(call program-rule,tests/apps,$(CORE_LIB),-Wl$(comma)--as-needed $(CORE_LIB) -lrdmacm -libverbs))
$(eval $(call program-rule,bench,,-lm))
$(eval $(call program-rule,examples,$(API_LIB),$(EXAMPLE_LIBS)))

# The same program, as one that rsock cannot reach.
$(BUILD)/tests/luck/luck-static: tests/luck/luck.c
	@mkdir -p $(@D)
	$(call say,LD,tests/luck/luck-static)$(CC) $(RS_CFLAGS) -DLUCK_STATIC -static -o $@ $<

$(BUILD)/tests/sim/sim: $(call obj,$(SIM_SRC) $(SIM_CORE))
	@mkdir -p $(@D)
	$(call say,LD,tests/sim/sim)$(CC) $(RS_LDFLAGS) -o $@ $^ -lm

$(BUILD)/tests/sim/sim-%: $(SIM_SRC) $(SIM_CORE) $(wildcard rsock/*.h tests/sim/*.h)
	@mkdir -p $(@D)
	$(call say,FAULT,$*)$(CC) $(RS_CFLAGS) -DRS_FAULTS_BUILD \
		-DRS_FAULT_PLANTED=RS_FAULT_ID_$* -o $@ $(SIM_SRC) $(SIM_CORE) -lm

$(REMOTE): $(call obj,$(REMOTE_SRC) $(REMOTE_CORE))
	@mkdir -p $(@D)
	$(call say,LD,tests/remote/remote)$(CC) $(RS_LDFLAGS) -o $@ $^

$(REMOTE)-%: $(REMOTE_SRC) $(REMOTE_CORE) $(wildcard rsock/*.h)
	@mkdir -p $(@D)
	$(call say,FAULT,$*)$(CC) $(RS_CFLAGS) -DRS_FAULTS_BUILD \
		-DRS_FAULT_PLANTED=RS_FAULT_ID_$* -o $@ $(REMOTE_SRC) $(REMOTE_CORE)

# The fuzz targets are of a build of their own (`make fuzz`), with what they need of the two layers.
FUZZ_LIB := $(BUILD)/librsock-fuzz.a
$(FUZZ_LIB): $(CORE_OBJ) $(call obj,$(wildcard conn_mgr/*.c) rsock/rdma/iwarp.c)
	$(call say,AR,$(@F))rm -f $@ && $(AR) rcs $@ $^
$(eval $(call program-rule,tests/fuzz,$(FUZZ_LIB),$(FUZZ_LIB) -fsanitize=fuzzer))

SETTLE := $(BUILD)/tests/suites/settle.so
$(SETTLE): $(call obj,tests/suites/settle.c)
	@mkdir -p $(@D)
	$(call say,LD,tests/suites/settle.so)$(CC) -shared $(RS_LDFLAGS) -o $@ $^

.SECONDARY:
.DELETE_ON_ERROR:

# ---- tests ----
#
# Each suite is one call of tests/run, which appends one line to $(RESULTS). `make test` runs every
# suite, whatever the others did, and adds the lines up; a suite that left no line has failed.

SUITES := unit libc stress sim fuzz conformance luck apps lab faults-few asan tsan
RESULTS ?= $(BUILD)/test-results
TIMEOUT ?= 300
run-suite = $(Q)RSOCK_BUILD=$(abspath $(BUILD)) tests/run --suite=$(1) --results=$(RESULTS)
script = $(wildcard $(1))
JOBS = $(if $(filter -j%,$(MAKEFLAGS)),,-j$(shell nproc))

.PHONY: test test-matrix $(addprefix test-,$(SUITES) san)
test: deps
	$(Q)rm -f $(RESULTS)
	$(Q)$(MAKE) $(JOBS) -k all programs || :
	$(Q)for suite in $(SUITES); do $(MAKE) $(JOBS) test-$$suite || :; done; \
		tests/run --total --results=$(RESULTS) $(SUITES)

test-unit: $(UNIT)
	$(call run-suite,unit) --timeout=$(TIMEOUT) $(UNIT)
# The installed glibc beside docs/libc.md, which classes its functions.
test-libc: $(PRELOAD_LIB)
	$(call run-suite,libc) $(call script,tests/libc/run)
test-stress: $(STRESS)
	$(call run-suite,stress) --timeout=$(TIMEOUT) $(STRESS)
test-sim: $(SIM) $(REMOTE) $(SIM_FAULTS)
	$(call run-suite,sim) --timeout=1200 $(SIM) $(REMOTE) $(call script,tests/sim/run-faults)
test-conformance: all $(CONFORMANCE)
	$(call run-suite,conformance) --timeout=1200 $(call script,tests/conformance/run)
test-luck: all $(LUCK)
	$(call run-suite,luck) --timeout=1200 $(call script,tests/luck/run)
test-apps: all $(APPS)
	$(call run-suite,apps) --timeout=1800 $(call script,tests/apps/run)

# Many programs of Debian in every pairing. Not in `make test`: it installs what they are.
test-matrix: all
	$(Q)tools/deps.sh matrix
	$(call run-suite,matrix) --timeout=1200 tests/matrix/run

# Two hosts with RDMA devices, as guests of this machine (tests/lab/README.md).
test-lab: all $(APPS) $(BENCH)
	$(Q)tests/lab/kernel >/dev/null
	$(call run-suite,lab) --timeout=2700 $(call script,tests/lab/run)

# Checked transfers while faults strike at random, here and between hosts of the lab. `make test` plays a
# few of them; all take half an hour.
.PHONY: test-faults
test-faults test-faults-few: all $(APPS)
	$(Q)tests/lab/kernel >/dev/null
	$(call run-suite,$(@:test-%=%)) --timeout=7200 'tests/faults/run$(if $(@:test-faults=), --few)'

# The test suites of others, plain and under rsock. Not part of `make test`: it takes ten minutes.
.PHONY: test-suites
test-suites:
	$(Q)tools/deps.sh suites
	$(Q)$(MAKE) $(JOBS) all $(SETTLE)
	$(call run-suite,suites) --timeout=3600 tests/suites/run

# Engines that spread over hosts: Redis Cluster, PostgreSQL replication, Open MPI, RabbitMQ. Takes
# minutes, and packages of its own; not part of `make test`.
.PHONY: test-engines
test-engines:
	$(Q)tools/deps.sh engines
	$(Q)$(MAKE) $(JOBS) all
	$(Q)tests/lab/kernel >/dev/null
	$(call run-suite,engines) --timeout=2700 "tests/lab/run --folder engines --jobs 1"

# The unit and stress programs again, in a build of their own with sanitizers.
test-asan: SANITIZER := address,undefined
test-tsan: SANITIZER := thread
test-asan test-tsan: test-%:
	$(Q)$(MAKE) BUILD=$(BUILD)/$* SAN=$(SANITIZER) SUITE=$* RESULTS=$(RESULTS) test-san
test-san: $(UNIT) $(STRESS)
	$(call run-suite,$(SUITE)) --timeout=$(TIMEOUT) $(UNIT) $(STRESS)

# libFuzzer targets of all that reads what others have written (docs/security.md). `make test-fuzz` replays
# their corpora, and fuzzes each for a moment; `make fuzz` does so for FUZZ_SECONDS each.
FUZZ_SECONDS ?= 600
FUZZ_MAKE = $(MAKE) $(JOBS) BUILD=$(BUILD)/fuzz CC=clang SAN=fuzzer-no-link,address,undefined
.PHONY: fuzz fuzz-programs
fuzz-programs: $(FUZZ)
test-fuzz:
	$(Q)$(FUZZ_MAKE) fuzz-programs
	$(call run-suite,fuzz) --timeout=120 tests/fuzz/run
fuzz: deps
	$(Q)$(FUZZ_MAKE) fuzz-programs
	$(Q)RSOCK_BUILD=$(abspath $(BUILD)) tests/fuzz/run --seconds=$(FUZZ_SECONDS)

# ---- the rest ----

.PHONY: demo demo-rdma bench bench-lab lab-shell install uninstall deps format lint clean help
deps:
	$(Q)tools/deps.sh

demo: deps
	$(Q)$(MAKE) $(JOBS) all
	$(Q)tools/demo.py $(BUILD)/rsock

demo-rdma: deps
	$(Q)$(MAKE) $(JOBS) all
	$(Q)tests/lab/kernel >/dev/null
	$(Q)RSOCK_BUILD=$(abspath $(BUILD)) tools/demo_rdma.py

lab-shell: all
	$(Q)tests/lab/kernel >/dev/null
	$(Q)RSOCK_BUILD=$(abspath $(BUILD)) tests/lab/shell

bench: all $(BENCH)
	$(Q)RSOCK_BUILD=$(abspath $(BUILD)) bench/run

# The same between two hosts of the lab, beside raw verbs and rsockets.
bench-lab: deps
	$(Q)$(MAKE) $(JOBS) all $(BENCH)
	$(Q)tests/lab/kernel >/dev/null
	$(Q)RSOCK_BUILD=$(abspath $(BUILD)) bench/lab

install: all
	install -d $(BINDIR) $(LIBDIR)/rsock $(LIBDIR)/pkgconfig $(INCDIR) $(MANDIR)
	install -m 755 $(TOOL) $(BINDIR)/rsock
	install -m 644 $(PRELOAD_LIB) $(LIBDIR)/rsock/librsock-preload.so
	install -m 644 $(RDMA_LIB) $(LIBDIR)/rsock/librsock-rdma.so
	install -m 644 $(API_LIB) $(LIBDIR)/librsock.so.0
	ln -sf librsock.so.0 $(LIBDIR)/librsock.so
	install -m 644 rsock/rsock.h $(INCDIR)/rsock.h
	install -m 644 docs/man/*.1 $(MANDIR)
	printf '%s\n' 'prefix=$(PREFIX)' 'libdir=$${prefix}/lib' 'includedir=$${prefix}/include' '' \
		'Name: rsock' 'Description: TCP sockets over shared memory and RDMA' \
		'Version: $(RELEASE)' 'Libs: -L$${libdir} -lrsock' 'Cflags: -I$${includedir}' \
		>$(LIBDIR)/pkgconfig/rsock.pc

uninstall:
	rm -f $(BINDIR)/rsock $(LIBDIR)/librsock.so $(LIBDIR)/librsock.so.0 $(INCDIR)/rsock.h \
		$(LIBDIR)/pkgconfig/rsock.pc $(addprefix $(MANDIR)/,$(notdir $(wildcard docs/man/*.1)))
	rm -rf $(LIBDIR)/rsock

SOURCES = $(shell find rsock conn_mgr preload tools tests bench examples -name '*.[ch]')
format:
	clang-format -i $(SOURCES)

lint:
	clang-format --dry-run -Werror $(SOURCES)
	cppcheck --quiet --error-exitcode=1 --enable=warning,performance,portability --inline-suppr \
		--suppress=missingIncludeSystem --suppress=readdirCalled --suppress=allocaCalled --library=posix --library=gnu \
		-j$(shell nproc) -D__x86_64__ -D__linux__ -D_GNU_SOURCE= -I. $(filter %.c,$(SOURCES))

clean:
	rm -rf $(BUILD)

help:
	@printf '%s\n' \
		'all                the preload library, librsock.so and the rsock command (build/)' \
		'demo               real programs, plain and under rsock, side by side' \
		'demo-rdma          the same between two hosts with RDMA devices, and RDMA cut off meanwhile' \
		'test               every test suite; ends with "N passed, N failed"' \
		'test-SUITE         one suite: $(SUITES)' \
		'test-suites        the test suites of CPython and libevent, plain and under rsock' \
		'test-faults        the fault campaign: half an hour (test-faults-few: two minutes)' \
		'test-engines       Redis Cluster, PostgreSQL replication, Open MPI, RabbitMQ on three hosts' \
		'test-matrix        many programs of Debian, plain and under rsock (docs/matrix.md)' \
		'fuzz               libFuzzer on all that reads what others write, FUZZ_SECONDS=$(FUZZ_SECONDS) each' \
		'bench              the benchmarks' \
		'bench-lab          the benchmarks between two hosts with RDMA devices' \
		'lab-shell          two hosts with RDMA devices: a shell on each, in tmux' \
		'install uninstall  under $$(DESTDIR)$$(PREFIX); PREFIX=$(PREFIX)' \
		'deps               install the Debian packages that building and testing need' \
		'format lint        clang-format; format check and cppcheck' \
		'clean              remove $(BUILD)/' \
		'V=1 shows the commands; BUILD, CC, CFLAGS, LDFLAGS as usual'
