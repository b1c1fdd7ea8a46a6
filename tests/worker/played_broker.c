#include "tests/worker/played_broker.h"

#include "tests/support/support.h"

#include <zmq.h>

#include "base/clock.h"

bool played_broker_receive(wire_socket *s, wire_peer *node, wire_message *in, int64_t until_us) {
    while (clock_now_us() < until_us) {
        err e;
        status st = wire_receive(s, in, &e);
        if (st == STATUS_TIMEOUT) {
            zmq_pollitem_t item = {.socket = wire_zmq(s), .events = ZMQ_POLLIN};
            (void)zmq_poll(&item, 1, 20);
            continue;
        }
        assert_int_equal(st, STATUS_OK);
        *node = in->from;
        return true;
    }
    return false;
}
