//! The chips that KVM emulates for the whole machine: interrupt controllers, timer, clock.

use kvm_bindings::{
    KVM_CLOCK_REALTIME, kvm_clock_data, kvm_irqchip, kvm_pit_channel_state, kvm_pit_state2,
};
use serde::{Deserialize, Serialize};
use zerocopy::{FromBytes, IntoBytes};

use super::{Blob, StateError};

/// Bytes of one interrupt controller in the kernel's layout.
pub const CHIP_BYTES: usize = 512;

/// The number of interrupt controllers: two PICs and the I/O APIC.
pub const CHIP_COUNT: usize = 3;

/// Interrupt controllers, timer and clock.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ChipsState {
    /// First PIC, second PIC, I/O APIC, [`CHIP_BYTES`] each.
    pub chips: Vec<Blob>,
    /// The programmable interval timer.
    pub pit: PitState,
    /// kvm-clock.
    pub clock: ClockState,
}

/// The programmable interval timer.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PitState {
    /// The three channels.
    pub channels: [ChannelState; 3],
    /// KVM_PIT_FLAGS_*.
    pub flags: u32,
}

/// One channel of the timer, as KVM names its parts.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[expect(missing_docs, reason = "the names are the documentation; they are the kernel's")]
pub struct ChannelState {
    pub count: u32,
    pub latched_count: u16,
    pub count_latched: u8,
    pub status_latched: u8,
    pub status: u8,
    pub read_state: u8,
    pub write_state: u8,
    pub write_latch: u8,
    pub rw_mode: u8,
    pub mode: u8,
    pub bcd: u8,
    pub gate: u8,
    pub count_load_time: i64,
}

/// kvm-clock.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ClockState {
    /// Nanoseconds since the guest was started.
    pub clock_ns: u64,
    /// The host's real time at that moment in nanoseconds, if the kernel gave it: then the time
    /// that passes until the restore is added.
    pub realtime_ns: Option<u64>,
}

impl ChipsState {
    /// The kernel's structure for interrupt controller `index`.
    ///
    /// # Errors
    /// [`StateError::Count`], [`StateError::Length`].
    pub(crate) fn chip(&self, index: usize) -> Result<kvm_irqchip, StateError> {
        let found = self.chips.len();
        if found != CHIP_COUNT {
            let what = "interrupt controllers";
            return Err(StateError::Count { what, found, wanted: CHIP_COUNT });
        }
        let bytes: &[u8; CHIP_BYTES] = self.chips[index].array("an interrupt controller")?;
        let mut whole = vec![0; size_of::<kvm_irqchip>()];
        whole[CHIP_OFFSET..].copy_from_slice(bytes);
        let mut chip = kvm_irqchip::read_from_bytes(&whole).expect("the length is the type's");
        chip.chip_id = u32::try_from(index).expect("there are three");
        Ok(chip)
    }
}

/// The bytes of an interrupt controller.
pub(crate) fn chip_bytes(chip: &kvm_irqchip) -> Blob {
    Blob(chip.as_bytes()[CHIP_OFFSET..].to_vec())
}

impl From<&kvm_pit_state2> for PitState {
    fn from(pit: &kvm_pit_state2) -> PitState {
        PitState { channels: pit.channels.map(ChannelState::from), flags: pit.flags }
    }
}

impl From<&PitState> for kvm_pit_state2 {
    fn from(pit: &PitState) -> kvm_pit_state2 {
        let channels = pit.channels.each_ref().map(kvm_pit_channel_state::from);
        kvm_pit_state2 { channels, flags: pit.flags, ..Default::default() }
    }
}

impl From<kvm_pit_channel_state> for ChannelState {
    fn from(channel: kvm_pit_channel_state) -> ChannelState {
        ChannelState {
            count: channel.count,
            latched_count: channel.latched_count,
            count_latched: channel.count_latched,
            status_latched: channel.status_latched,
            status: channel.status,
            read_state: channel.read_state,
            write_state: channel.write_state,
            write_latch: channel.write_latch,
            rw_mode: channel.rw_mode,
            mode: channel.mode,
            bcd: channel.bcd,
            gate: channel.gate,
            count_load_time: channel.count_load_time,
        }
    }
}

impl From<&ChannelState> for kvm_pit_channel_state {
    fn from(channel: &ChannelState) -> kvm_pit_channel_state {
        kvm_pit_channel_state {
            count: channel.count,
            latched_count: channel.latched_count,
            count_latched: channel.count_latched,
            status_latched: channel.status_latched,
            status: channel.status,
            read_state: channel.read_state,
            write_state: channel.write_state,
            write_latch: channel.write_latch,
            rw_mode: channel.rw_mode,
            mode: channel.mode,
            bcd: channel.bcd,
            gate: channel.gate,
            count_load_time: channel.count_load_time,
        }
    }
}

impl From<&kvm_clock_data> for ClockState {
    fn from(clock: &kvm_clock_data) -> ClockState {
        let known = clock.flags & KVM_CLOCK_REALTIME != 0;
        ClockState { clock_ns: clock.clock, realtime_ns: known.then_some(clock.realtime) }
    }
}

impl From<&ClockState> for kvm_clock_data {
    fn from(clock: &ClockState) -> kvm_clock_data {
        kvm_clock_data {
            clock: clock.clock_ns,
            flags: clock.realtime_ns.map_or(0, |_| KVM_CLOCK_REALTIME),
            realtime: clock.realtime_ns.unwrap_or(0),
            ..Default::default()
        }
    }
}

/// `kvm_irqchip`: the number of the chip, padding, and then the chip.
const CHIP_OFFSET: usize = 8;

const _: () = assert!(size_of::<kvm_irqchip>() == CHIP_OFFSET + CHIP_BYTES);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn chip_survives_both_ways() {
        let bytes: Vec<u8> = (0..=255).cycle().take(CHIP_BYTES).collect();
        let blob = Blob(bytes);
        let state = ChipsState {
            chips: vec![blob.clone(); CHIP_COUNT],
            pit: PitState { channels: Default::default(), flags: 0 },
            clock: ClockState { clock_ns: 1, realtime_ns: None },
        };
        let chip = state.chip(2).unwrap();
        assert_eq!(chip.chip_id, 2);
        assert_eq!(chip_bytes(&chip), blob);
    }

    #[test]
    fn wrong_counts_and_lengths_are_refused() {
        let mut state = ChipsState {
            chips: vec![Blob(vec![0; CHIP_BYTES]); 2],
            pit: PitState { channels: Default::default(), flags: 0 },
            clock: ClockState { clock_ns: 1, realtime_ns: None },
        };
        assert!(matches!(state.chip(0), Err(StateError::Count { .. })));
        state.chips.push(Blob(vec![0; 511]));
        assert!(matches!(state.chip(2), Err(StateError::Length { .. })));
    }

    #[test]
    fn pit_survives_both_ways() {
        let channel =
            ChannelState { count: 65536, mode: 2, count_load_time: -3, ..Default::default() };
        let pit = PitState { channels: [channel.clone(), channel.clone(), channel], flags: 1 };
        assert_eq!(PitState::from(&kvm_pit_state2::from(&pit)), pit);
    }
}
