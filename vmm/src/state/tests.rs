//! Saved state is read from strangers: any bytes give a value or an error.

use proptest::prelude::*;

use super::*;

fn vcpu() -> VcpuState {
    VcpuState {
        cpuid: vec![Leaf {
            function: 7,
            index: 0,
            has_index: true,
            eax: 1,
            ebx: 2,
            ecx: 3,
            edx: 4,
        }],
        mp_state: 3,
        registers: Registers { rip: 0xffff_ffff_8100_0000, ..Default::default() },
        system: SystemRegisters { cr3: 0x1000, pdptrs: Some([1; 4]), ..Default::default() },
        xsave: Blob(vec![7; 4096]),
        xcrs: vec![ExtendedControl { index: 0, value: 7 }],
        msrs: vec![Msr { index: 0x10, value: u64::MAX }],
        lapic: Blob(vec![9; 1024]),
        events: Events { exception_nr: 14, ..Default::default() },
        debug: DebugRegisters::default(),
    }
}

fn read_as_everything(bytes: &[u8]) {
    let _ = decode::<VcpuState>("a", bytes);
    let _ = decode::<ChipsState>("a", bytes).and_then(|state| state.chip(0));
    let _ = decode::<MachineState>("a", bytes);
    let _ = decode::<SerialState>("a", bytes);
    let _ = decode::<VirtioState>("a", bytes);
    let _ = decode::<Requirements>("a", bytes).and_then(|it| it.check_limits());
}

#[test]
fn what_is_written_is_read_again() {
    let section = encode(Kind::Vcpu, &vcpu());
    assert_eq!(Kind::of(&section).unwrap(), Kind::Vcpu);
    assert_eq!(decode::<VcpuState>("a vcpu", &section.bytes).unwrap(), vcpu());
}

#[test]
fn every_truncation_is_refused() {
    let bytes = encode(Kind::Vcpu, &vcpu()).bytes;
    for length in 0..bytes.len() {
        let error = decode::<VcpuState>("a vcpu", &bytes[..length]).unwrap_err();
        assert!(matches!(error, StateError::Damaged { .. }), "{error}");
    }
}

#[test]
fn what_is_left_over_is_refused() {
    let mut bytes = encode(Kind::Vcpu, &vcpu()).bytes;
    bytes.push(0);
    let error = decode::<VcpuState>("a vcpu", &bytes).unwrap_err();
    assert!(matches!(error, StateError::LeftOver { bytes: 1, .. }), "{error}");
}

#[test]
fn newer_versions_and_unknown_sections_are_refused() {
    let section = Section { id: 4, version: 2, bytes: Vec::new() };
    let text = Kind::of(&section).unwrap_err().to_string();
    assert!(text.contains("version 2") && text.contains("up to 1"), "{text}");
    let section = Section { id: 4, version: 0, bytes: Vec::new() };
    assert!(matches!(Kind::of(&section), Err(StateError::Version { .. })));
    let section = Section { id: 99, version: 1, bytes: Vec::new() };
    assert!(matches!(Kind::of(&section), Err(StateError::UnknownSection { id: 99 })));
}

proptest! {
    #[test]
    fn any_bytes_are_a_value_or_an_error(bytes in proptest::collection::vec(any::<u8>(), 0..2000)) {
        read_as_everything(&bytes);
    }

    #[test]
    fn garbled_state_is_a_value_or_an_error(
        changes in proptest::collection::vec((any::<proptest::sample::Index>(), any::<u8>()), 1..8),
    ) {
        let mut bytes = encode(Kind::Vcpu, &vcpu()).bytes;
        for (at, byte) in changes {
            let at = at.index(bytes.len());
            bytes[at] = byte;
        }
        read_as_everything(&bytes);
    }
}
