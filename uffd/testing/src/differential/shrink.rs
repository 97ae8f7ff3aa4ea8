//! Cutting a case down to the acts that matter.

use super::Disagreement;
use super::act::{Act, Odd};
use crate::world::Placement;

/// Replays that a case is worth.
const REPLAYS_MAX: usize = 600;

/// What a world panics with when a call neither ends nor sleeps.
const ENDLESS: &str = "neither ends nor sleeps";

/// The smallest case that still shows a disagreement, of whatever kind `replay` then finds. If
/// the case does not repeat, it is kept whole and its kind says so.
pub fn smallest(
    found: Disagreement,
    mut replay: impl FnMut(&[Act]) -> Option<Disagreement>,
) -> Disagreement {
    // Each replay of a case that never ends would last as long as the world's patience.
    if found.detail.contains(ENDLESS) {
        return found;
    }
    let Some(mut best) = replay(&found.acts) else {
        return Disagreement { kind: format!("{} (not again)", found.kind), ..found };
    };
    let mut replays = 0;
    let mut try_one = |best: &mut Disagreement, acts: &[Act]| {
        replays += 1;
        if replays > REPLAYS_MAX {
            return false;
        }
        match replay(acts) {
            Some(smaller) if smaller.acts.len() <= best.acts.len() => {
                *best = smaller;
                true
            }
            _ => false,
        }
    };
    loop {
        let before = best.acts.clone();
        let mut chunk = best.acts.len() / 2;
        while chunk > 0 {
            let mut at = 0;
            while at < best.acts.len() {
                let mut fewer = best.acts.clone();
                fewer.drain(at..(at + chunk).min(fewer.len()));
                if fewer.is_empty() || !try_one(&mut best, &fewer) {
                    at += chunk;
                }
            }
            chunk /= 2;
        }
        let mut at = 0;
        while at < best.acts.len() {
            let forms = plainer(best.acts[at]);
            for plain in forms {
                let mut acts = best.acts.clone();
                if let Some(act) = acts.get_mut(at) {
                    *act = plain;
                    try_one(&mut best, &acts);
                }
            }
            at += 1;
        }
        if best.acts == before {
            return best;
        }
    }
}

/// Forms of an act that say less.
fn plainer(act: Act) -> Vec<Act> {
    let mut forms = Vec::new();
    match act {
        Act::Call { process, fd, number, at, from, mode, odd, placement } => {
            let call = |at, mode, odd, placement| Act::Call {
                process,
                fd,
                number,
                at,
                from,
                mode,
                odd,
                placement,
            };
            forms.push(call(super::act::Span { pages: 1, ..at }, mode, odd, placement));
            forms.push(call(at, 0, odd, placement));
            forms.push(call(at, mode, Odd::No, Placement::Ordinary));
        }
        Act::Open { process, features, user_mode_only } => {
            for bit in (0..64).filter(|bit| features >> bit & 1 == 1) {
                let features = features & !(1 << bit);
                forms.push(Act::Open { process, features, user_mode_only });
            }
        }
        Act::Touch { process, area, page, how, exact: true } => {
            forms.push(Act::Touch { process, area, page, how, exact: false });
        }
        _ => {}
    }
    forms.retain(|form| *form != act);
    forms
}
