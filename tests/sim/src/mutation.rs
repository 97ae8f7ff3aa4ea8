//! Mistakes that are made on purpose, to show that the simulator finds them.

/// A mistake of the engine or of what drives it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mutation {
    /// A vCPU is woken before its page is in place, and not after.
    WakeBeforeInstall,
    /// The source takes a page that was lost with the channel for one that has arrived.
    ForgetPageOnReconnect,
    /// A stream that ends has brought all that it should.
    EndOfStreamIsSuccess,
    /// A source that does not hear from its destination grants the guest to another host.
    GrantTwice,
    /// A page of an older round is installed after it was discarded.
    InstallAfterDiscard,
    /// A page is installed between its discard in the claims and the emptying of its memory.
    InstallBetweenDiscardAndEmptying,
}
