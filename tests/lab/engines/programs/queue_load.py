#!/usr/bin/python3
# SPDX-License-Identifier: BSD-2-Clause OR GPL-2.0-only
"""A client of a RabbitMQ cluster that knows what every message must hold.

    queue_load.py publish HOST,HOST... FIRST COUNT   each until it is confirmed, by whichever host answers
    queue_load.py consume HOST,HOST... FIRST COUNT   until each has come; at least once is what is promised

The queue is a quorum queue: a message is confirmed when most of the nodes have it. Prints a line of
JSON at the end.
"""
import hashlib
import json
import sys
import time

import pika

QUEUE = "numbers"
PATIENCE = 10  # seconds


def body_of(number):
    """1 byte to 8 KB after the number, now and then 200 KB."""
    digest = hashlib.sha256(b"%d" % number).digest()
    size = 200_000 if digest[0] < 4 else 1 + int.from_bytes(digest[1:3], "big") % 8192
    return b"%d " % number + (digest * (size // len(digest) + 1))[:size]


def channel(host):
    connection = pika.BlockingConnection(pika.ConnectionParameters(
        host, blocked_connection_timeout=PATIENCE, socket_timeout=PATIENCE, heartbeat=PATIENCE))
    made = connection.channel()
    made.queue_declare(QUEUE, durable=True, arguments={"x-queue-type": "quorum"})
    return made


def publish(host, left):
    through = channel(host)
    through.confirm_delivery()
    for number in sorted(left):
        through.basic_publish("", QUEUE, body_of(number), mandatory=True)
        left.discard(number)
        if number % 50 == 0:
            print("published %d" % number, flush=True)
    through.connection.close()


def consume(host, left):
    through = channel(host)
    through.basic_qos(prefetch_count=20)
    for method, _, body in through.consume(QUEUE, inactivity_timeout=PATIENCE):
        if method is None:
            raise ConnectionError("nothing comes, and %d are missing" % len(left))
        number = int(body.split(b" ", 1)[0])
        if body != body_of(number):
            sys.exit("message %d is not what was published" % number)
        through.basic_ack(method.delivery_tag)
        left.discard(number)
        if not left:
            break
    through.cancel()
    through.connection.close()


def main():
    what, hosts, first, count = sys.argv[1:]
    hosts = hosts.split(",")
    left = set(range(int(first), int(first) + int(count)))
    failures = []
    while left:
        try:
            (publish if what == "publish" else consume)(hosts[len(failures) % len(hosts)], left)
        except (pika.exceptions.AMQPError, OSError) as error:
            failures.append("%s: %s" % (type(error).__name__, error))
            time.sleep(0.5)
    print(json.dumps({what: int(count), "failures": failures}))


if __name__ == "__main__":
    main()
