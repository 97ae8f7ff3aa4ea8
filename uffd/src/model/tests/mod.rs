//! What the conformance rows do not pin: locks, saved retry state, the order of double locks,
//! wake ranges, and the parts in isolation.
