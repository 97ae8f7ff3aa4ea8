//! In what one kernel differs from another: each difference is a field with a name.

use super::Errno;

/// Which kernel the model is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[expect(clippy::struct_excessive_bools, reason = "each field is one difference, and independent")]
pub struct Profile {
    /// A COPY whose source had to be read outside of the locks is refused with EAGAIN if the
    /// destination has become another kind of memory meanwhile. Before, only the checks of a new
    /// COPY are made.
    pub copy_notices_changed_map: bool,
    /// COPY, CONTINUE and shared ZEROPAGE leave a guard marker alone (EEXIST). Before, they fill
    /// over it.
    pub fill_respects_guard: bool,
    /// A thread that meets a guard marker, when it looks again before it sleeps, does not sleep.
    pub waits_on_guard: bool,
    /// What CONTINUE says behind the end of the file.
    pub continue_past_end: Errno,
    /// REGISTER is refused with EBUSY if it would take WP from memory that has it.
    pub register_keeps_protection: bool,
    /// Memory of the special kinds is refused even where WP_ASYNC takes any kind.
    pub register_refuses_special: bool,
    /// guest_memfd mappings take MISSING and MINOR.
    pub guest_memory_fills: bool,
    /// What COPY into hugetlb memory says when the pool is empty.
    pub hugetlb_pool_empty: Errno,
    /// RWP, RWP_ASYNC, RWPROTECT and SET_MODE exist.
    pub read_write_protect: bool,
    /// mremap to memory whose context has not asked for REMAP events takes the write-protection
    /// off.
    pub remap_clears_protection: bool,
    /// Memory that has had a guard marker is known for it (`VM_MAYBE_GUARD`): a fork copies its
    /// page tables. Before, a guard makes it memory with anonymous pages, which mremap can end.
    pub remembers_guards: bool,
    /// Memory-failure support is built in: poison is told as such (BUS_MCEERR_AR), not as a bad
    /// address. It depends on how a kernel was configured, not on its version.
    pub memory_failure: bool,
}

impl Profile {
    /// Linux 6.18, as configured on the machine that the specification was taken from.
    pub const V6_18: Profile = Profile {
        copy_notices_changed_map: false,
        fill_respects_guard: false,
        waits_on_guard: true,
        continue_past_end: Errno::EINVAL,
        register_keeps_protection: false,
        register_refuses_special: false,
        guest_memory_fills: false,
        hugetlb_pool_empty: Errno::EEXIST,
        read_write_protect: false,
        remap_clears_protection: true,
        remembers_guards: true,
        memory_failure: false,
    };

    /// The newest tree that the specification was read from.
    pub const NEWEST: Profile = Profile {
        copy_notices_changed_map: true,
        fill_respects_guard: true,
        waits_on_guard: false,
        continue_past_end: Errno::EFAULT,
        register_keeps_protection: true,
        register_refuses_special: true,
        guest_memory_fills: true,
        hugetlb_pool_empty: Errno::EEXIST,
        read_write_protect: true,
        remap_clears_protection: true,
        remembers_guards: true,
        memory_failure: false,
    };
}
