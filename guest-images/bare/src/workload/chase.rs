//! `chase`: each page says which is next, so no read can begin before the one before it is done.

use godwit_guest::order::Permutation;
use godwit_guest::page::{Content, LINK_WORD, Mismatch, mix};

use crate::vcpu::{Pass, Vcpu};
use crate::workload::sequential;
use crate::workload::timed::Timed;

/// Follows the links once around the owned pages of the share; the others are swept over at the
/// end.
pub fn run(vcpu: &mut Vcpu) {
    let mut timed = Timed::new(vcpu);
    while let Some(mut pass) = vcpu.begin_pass() {
        timed.begin();
        if vcpu.guest.config.verify {
            verified(vcpu, &mut timed, &mut pass);
            sequential::sweep_zero(vcpu, &mut pass, 1);
        } else {
            unverified(vcpu, &mut timed, &mut pass);
        }
        timed.print(vcpu, &pass);
        vcpu.end_pass(&pass);
    }
}

/// The owned pages of the share in the order of their links, each with its link.
pub fn chain(vcpu: &Vcpu) -> impl Iterator<Item = (u64, u64)> + use<> {
    let share = vcpu.owned_share();
    let key = mix(vcpu.guest.config.seed ^ vcpu.index as u64);
    let order = Permutation::new(share.end - share.start, key);
    let pages = move || order.iter().map(move |position| share.start + position);
    pages().zip(pages().skip(1).chain(pages().take(1)))
}

fn verified(vcpu: &mut Vcpu, timed: &mut Timed, pass: &mut Pass) {
    let mut next = None;
    for (index, link) in chain(vcpu) {
        let read = timed.read(vcpu, next.unwrap_or(index), LINK_WORD);
        let content = Content { link, ..vcpu.content(index, vcpu.guest.generation(index)) };
        let good = vcpu.check(pass, &content);
        next = good.then_some(read);
        vcpu.step();
    }
}

fn unverified(vcpu: &mut Vcpu, timed: &mut Timed, pass: &mut Pass) {
    let share = vcpu.owned_share();
    let Some((mut index, _)) = chain(vcpu).next() else {
        return;
    };
    for _ in share.clone() {
        let next = timed.read(vcpu, index, LINK_WORD);
        if !share.contains(&next) {
            let content = vcpu.content(index, vcpu.guest.generation(index));
            let (offset, wanted) = (LINK_WORD * size_of::<u64>(), share.start);
            let mismatch = Mismatch { offset, found: next, wanted, words: 1 };
            return vcpu.complain(pass, &content, &mismatch);
        }
        index = next;
        vcpu.step();
    }
}
