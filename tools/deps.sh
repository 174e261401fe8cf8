#!/bin/sh
# SPDX-License-Identifier: BSD-2-Clause OR GPL-2.0-only
#
# deps.sh [LIST...] - install the Debian packages that building, testing and the demo need
#
# With the name of a list below, those that a target of its own needs too: `deps.sh engines`.
# Says nothing and touches nothing when all of them are there. Needs root only to install.
set -eu

# The lists below are words, split where they are used.

build='gcc libc6-dev make git pkg-config libibverbs-dev librdmacm-dev libnl-route-3-dev'
tests='libcmocka-dev libasan8 libubsan1 libtsan2 python3 procps util-linux iproute2 strace jq curl'
programs='redis-server redis-tools iperf3 nginx wrk postgresql gnuplot-nox'
lab='ibverbs-providers ibverbs-utils rdmacm-utils perftest nftables tmux valgrind'
fuzz='clang libclang-rt-14-dev'
lint='clang-format cppcheck'
wanted="$build $tests $programs $lab $fuzz $lint"

# shellcheck disable=SC2034
suites='python3.11 libpython3.11-testsuite openssl libssl-dev zlib1g-dev'
# shellcheck disable=SC2034
engines='redis-server openmpi-bin python3-mpi4py rabbitmq-server python3-pika'
# shellcheck disable=SC2034
matrix='memcached libmemcached-tools mariadb-server mariadb-client etcd-server etcd-client
	apache2 apache2-utils lighttpd gunicorn php-cli nodejs haproxy stunnel4 openssl tinyproxy squid
	openssh-server openssh-client vsftpd lftp rsync nbdkit libnbd-bin dovecot-imapd
	mosquitto mosquitto-clients beanstalkd python3-zmq bind9 bind9-dnsutils
	sockperf qperf netcat-openbsd netcat-traditional socat
	perl ruby tcl lua5.4 lua-socket erlang-base openjdk-17-jdk-headless'
for list in "$@"; do
	eval "wanted=\"\$wanted \$$list\""
done

if ! command -v dpkg-query >/dev/null; then
	echo "deps: not a Debian system; see to it that these are installed: $wanted" >&2
	exit 0
fi

# shellcheck disable=SC2086
installed=$(dpkg-query -W -f ':${db:Status-Status} ${Package} \n' $wanted 2>/dev/null) || true
missing=
for package in $wanted; do
	case "$installed" in
	*":installed $package "*) ;; # not "not-installed"
	*) missing="$missing $package" ;;
	esac
done
[ -n "$missing" ] || exit 0

if [ "$(id -u)" -ne 0 ]; then
	echo "deps: packages are missing; install them with:" >&2
	echo "  sudo apt-get install -y --no-install-recommends$missing" >&2
	exit 1
fi

# Packages of servers start them when they are installed; we want the programs only.
policy=/usr/sbin/policy-rc.d
if [ ! -e "$policy" ]; then
	trap 'rm -f "$policy"' EXIT
	trap 'exit 1' HUP INT TERM
	printf '#!/bin/sh\nexit 101\n' >"$policy"
	chmod 755 "$policy"
fi

echo "deps: installing$missing"
export DEBIAN_FRONTEND=noninteractive
lock='-o DPkg::Lock::Timeout=300'
# shellcheck disable=SC2086
apt-get $lock update -qq
# shellcheck disable=SC2086
apt-get $lock install -qq -y --no-install-recommends $missing >/dev/null
