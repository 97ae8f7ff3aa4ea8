//! `random`: pages in random order, each first read timed.

use godwit_guest::config::Order;
use godwit_guest::order::{Permutation, Prng, Zipf};
use godwit_guest::page::mix;

use crate::vcpu::{Pass, Vcpu};
use crate::workload::sequential;
use crate::workload::timed::Timed;

/// Visits the pages of the share, each once a pass in an order of its own, or as many times by
/// Zipf's law, with the same pages always the frequent ones.
pub fn run(vcpu: &mut Vcpu) {
    let mut timed = Timed::new(vcpu);
    while let Some(mut pass) = vcpu.begin_pass() {
        timed.begin();
        match vcpu.guest.config.order {
            Order::Uniform => uniform(vcpu, &mut timed, &mut pass),
            Order::Zipf => zipf(vcpu, &mut timed, &mut pass),
        }
        timed.print(vcpu, &pass);
        vcpu.end_pass(&pass);
    }
}

fn uniform(vcpu: &mut Vcpu, timed: &mut Timed, pass: &mut Pass) {
    let order = Permutation::new(pages(vcpu), key(vcpu, pass.number));
    for position in order.iter() {
        let index = page_at(vcpu, position);
        timed.read(vcpu, index, TIMED_WORD);
        if vcpu.guest.config.verify {
            sequential::check_any(vcpu, pass, index);
        }
        vcpu.step();
    }
}

/// The draws leave pages out, so a sweep that is not timed completes the pass.
fn zipf(vcpu: &mut Vcpu, timed: &mut Timed, pass: &mut Pass) {
    let pages = pages(vcpu);
    if pages == 0 {
        return;
    }
    let (law, places) = (Zipf::new(pages), Permutation::new(pages, key(vcpu, 0)));
    let mut prng = Prng::new(key(vcpu, pass.number));
    for _ in 0..pages {
        let index = page_at(vcpu, places.at(law.rank(prng.draw())));
        timed.read(vcpu, index, TIMED_WORD);
        vcpu.step();
    }
    if vcpu.guest.config.verify {
        sequential::sweep(vcpu, pass, 1);
    }
}

/// Pages of the share, owned and zero.
fn pages(vcpu: &Vcpu) -> u64 {
    let (owned, zero) = (vcpu.owned_share(), vcpu.zero_share());
    (owned.end - owned.start) + (zero.end - zero.start)
}

fn page_at(vcpu: &Vcpu, position: u64) -> u64 {
    let (owned, zero) = (vcpu.owned_share(), vcpu.zero_share());
    let owned_pages = owned.end - owned.start;
    match position.checked_sub(owned_pages) {
        Some(rest) => zero.start + rest,
        None => owned.start + position,
    }
}

fn key(vcpu: &Vcpu, number: u64) -> u64 {
    mix(vcpu.guest.config.seed ^ mix(number) ^ (vcpu.index as u64) << 48)
}

/// The word that a timed read reads: the page index.
const TIMED_WORD: usize = 0;
