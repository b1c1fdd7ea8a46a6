/* The guards, one function a rule, in one table: the whole answer to "may this happen now?".
 *
 * Success is welcome from any attempt, because the same attempt inputs give the same bytes and the
 * first final state wins. Blame and hand-backs count from the current attempt only, because an old one
 * says nothing about the present. A guard reads, it never writes. */
#include <string.h>

#include "broker/item_machine_internal.h"

static bool is_leased(const item_row *it) {
    return it->state == ITEM_ENCODING || it->state == ITEM_GENERATING;
}

/* The holder of the current attempt has just let go of it. A report about somebody else's attempt
 * finds the grant still in force and changes nothing. */
static bool is_current(const item_machine *m, const item_row *it, const rule_facts *f) {
    if (MUTANT(m, 3)) return is_leased(it);
    return is_leased(it) && f->attempt == it->attempt && it->grant == SLOT_NONE;
}

bool was_for_stage(const item_row *it, uint32_t attempt, item_stage stage) {
    bool is_known = attempt >= 1 && attempt <= it->attempt && it->attempt - attempt < 64;
    return is_known && (it->lm_attempts >> (attempt % 64) & 1) == (stage == STAGE_LM);
}

bool crash_is_known(const item_row *it, uint64_t node, uint64_t incarnation, uint32_t attempt) {
    for (uint32_t i = 0; i < it->n_crashes; i++)
        if (it->crashes[i].node == node && it->crashes[i].incarnation == incarnation &&
            it->crashes[i].attempt == attempt)
            return true;
    return false;
}

static bool may_accept(const item_machine *m, const item_row *it, const rule_facts *f) {
    (void)m, (void)f;
    return it->state == ITEM_NONE;
}

static bool may_claim(const item_machine *m, const item_row *it, const rule_facts *f) {
    (void)m, (void)f;
    return (it->state == ITEM_WAITING_FEATURES || it->state == ITEM_READY) &&
           it->grant == SLOT_NONE && it->place == PLACE_NONE;
}

static bool may_renew(const item_machine *m, const item_row *it, const rule_facts *f) {
    return is_leased(it) && f->attempt == it->attempt && it->grant != SLOT_NONE &&
           f->progress > m->nodes.grants[it->grant].progress;
}

static bool may_encoded(const item_machine *m, const item_row *it, const rule_facts *f) {
    (void)m;
    return (it->state == ITEM_WAITING_FEATURES || it->state == ITEM_ENCODING) &&
           was_for_stage(it, f->attempt, STAGE_VISION);
}

static bool may_done(const item_machine *m, const item_row *it, const rule_facts *f) {
    if (MUTANT(m, 2) && it->state == ITEM_DONE) return true;
    return !item_state_is_final(it->state) && was_for_stage(it, f->attempt, STAGE_LM);
}

static bool may_regress(const item_machine *m, const item_row *it, const rule_facts *f) {
    return it->state == ITEM_GENERATING && it->image != SLOT_NONE && is_current(m, it, f);
}

static bool may_crash(const item_machine *m, const item_row *it, const rule_facts *f) {
    if (item_state_is_final(it->state) || it->attempt == 0 || f->attempt > it->attempt) return false;
    if (it->n_crashes == ITEM_CRASHES_MAX) return false;
    if (MUTANT(m, 7)) return true;
    return !crash_is_known(it, f->node, f->incarnation, f->attempt);
}

static bool may_cancel(const item_machine *m, const item_row *it, const rule_facts *f) {
    (void)m;
    return !item_state_is_final(it->state) && f->tenant == it->tenant;
}

static bool may_expire(const item_machine *m, const item_row *it, const rule_facts *f) {
    (void)f;
    if (MUTANT(m, 14)) return false;
    return !item_state_is_final(it->state) && it->deadline_us > 0 && m->now_us >= it->deadline_us;
}

static bool may_deliver(const item_machine *m, const item_row *it, const rule_facts *f) {
    (void)m;
    return item_state_is_final(it->state) && it->state != ITEM_DELIVERED && f->tenant == it->tenant;
}

static bool may_drop(const item_machine *m, const item_row *it, const rule_facts *f) {
    (void)f;
    return item_state_is_final(it->state) && it->state != ITEM_DELIVERED &&
           m->now_us >= it->finished_us + m->limits.retention_us;
}

typedef bool guard(const item_machine *m, const item_row *it, const rule_facts *f);

static guard *const guards[RULE_COUNT] = {
    [RULE_ACCEPT] = may_accept,   [RULE_CLAIM] = may_claim,       [RULE_RENEW] = may_renew,
    [RULE_ENCODED] = may_encoded, [RULE_DONE] = may_done,         [RULE_RELEASE] = is_current,
    [RULE_RETRY] = is_current,    [RULE_FAIL] = is_current,       [RULE_LEASE_LOST] = is_current,
    [RULE_CRASH] = may_crash,     [RULE_REGRESS] = may_regress,   [RULE_CANCEL] = may_cancel,
    [RULE_EXPIRE] = may_expire,   [RULE_DELIVER] = may_deliver,   [RULE_DROP] = may_drop,
};

bool rule_allows(const item_machine *m, machine_rule rule, const item_row *it,
                 const rule_facts *facts) {
    return guards[rule](m, it, facts);
}

void rule_commit(item_machine *m, machine_rule rule, uint32_t item, item_state to, held then) {
    item_row *it = &m->items[item];
    CHECK(m->token - m->settled < m->n_ring, "every transition under way has its place in the ring");
    uint64_t token = ++m->token;
    action *a = emit(m, ACTION_COMMIT, 0);
    a->id = it->id;
    a->attempt = it->attempt;
    a->commit.token = token;
    a->commit.record = (machine_record){.nonce = token, .id = it->id, .digest = it->digest,
                                        .from = it->state, .to = to, .attempt = it->attempt,
                                        .code = it->code, .rule = (uint8_t)rule};
    if (then.is_crash) a->commit.record.attempt = then.attempt;
    if (then.node != SLOT_NONE) {
        a->commit.record.node = m->nodes.nodes[then.node].node;
        a->commit.record.incarnation =
            then.is_crash ? then.incarnation : m->nodes.nodes[then.node].incarnation;
    }
    it->state = to;
    it->token = token;
    m->ring[token % m->n_ring] = then;
}
