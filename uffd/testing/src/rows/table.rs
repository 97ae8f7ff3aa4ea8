//! Which rows there are and what they need. The table is a macro, because two things are made of
//! it: the static table here, and a test for each row and backend in `uffd/tests`.

use super::Row;
use super::*;
use crate::world::Ability::*;

/// Hands every row to a macro, as `module::row_number_claim [abilities];`.
#[macro_export]
macro_rules! for_each_row {
    ($then:ident) => {
        $then! {
            handshake::row_001_register_before_the_handshake_is_refused [];
            handshake::row_002_nothing_can_be_read_before_the_handshake [];
            handshake::row_003_another_version_of_the_interface_is_refused [];
            handshake::row_004_an_unknown_feature_is_refused_and_another_try_works [];
            handshake::row_005_the_handshake_tells_all_features_and_calls [];
            handshake::row_006_a_second_handshake_is_refused [];
            handshake::row_007_fork_events_without_privilege_are_refused_first [Unprivileged];
            handshake::row_008_async_protection_brings_unpopulated_along [];
            handshake::row_009_poll_refuses_a_blocking_descriptor [];
            handshake::row_010_read_wants_room_for_a_message [];
            handshake::row_011_permission_is_checked_before_flags [Unprivileged];
            register::row_012_modes_that_do_not_exist_are_refused [];
            register::row_013_what_works_on_anonymous_memory [];
            register::row_014_anonymous_memory_has_no_minor_faults [];
            register::row_015_what_works_on_shared_memory [];
            register::row_016_what_works_on_hugetlb [Hugetlb(1)];
            register::row_017_a_range_without_memory_is_refused [];
            register::row_018_holes_in_a_range_are_tolerated [];
            register::row_019_memory_of_another_descriptor_is_busy [];
            register::row_020_another_descriptor_cannot_unregister [];
            register::row_021_unregister_of_what_was_never_registered [];
            register::row_022_register_with_fewer_modes_changes_nothing [];
            register::row_023_register_with_other_modes_replaces_them [];
            register::row_024_protection_dropped_by_register_leaves_its_bits [];
            register::row_025_memory_that_can_never_be_written_is_refused [];
            register::row_026_a_regular_file_accepts_async_protection_alone [];
            delivery::row_027_a_read_of_a_hole_is_told_with_its_address [];
            delivery::row_028_a_write_to_a_hole_has_the_write_flag [];
            delivery::row_029_each_thread_has_its_message_and_one_copy_frees_both [];
            delivery::row_030_a_fault_resolved_before_it_is_read_leaves_no_message [];
            delivery::row_031_a_bare_wake_brings_a_new_message [];
            delivery::row_032_a_wake_of_another_page_wakes_nobody [];
            delivery::row_033_without_a_wake_the_waiter_sleeps_on [];
            delivery::row_034_a_signal_repeats_the_access_with_a_new_message [];
            delivery::row_035_faults_are_read_before_older_events [];
            delivery::row_036_a_message_read_into_nowhere_is_lost [];
            delivery::row_037_a_huge_page_is_told_by_its_start [Hugetlb(2)];
            delivery::row_038_signals_take_the_place_of_messages [];
            delivery::row_039_user_mode_only_serves_user_faults_alone [];
            delivery::row_040_unregister_leaves_waiters_of_protection_asleep [];
            delivery::row_041_unregister_frees_waiters_of_missing_pages [];
            delivery::row_042_close_frees_all_and_clears_protection [];
            copy::row_043_copy_into_a_hole [];
            copy::row_044_copy_over_a_present_page_is_refused [Swap];
            copy::row_045_copy_over_a_marker_of_protection [];
            copy::row_046_copy_replaces_poison [];
            copy::row_047_copy_over_a_guard [];
            copy::row_048_nothing_goes_into_a_huge_page [TransparentHuge];
            copy::row_049_copy_protected_needs_the_mode_of_protection [];
            copy::row_050_bad_arguments_leave_the_out_field_alone [];
            copy::row_051_the_source_may_be_anywhere [];
            copy::row_052_a_source_that_cannot_be_read [];
            copy::row_053_copy_stops_at_a_present_page [];
            copy::row_054_copy_stops_where_the_source_ends [];
            copy::row_055_a_copy_that_stops_wakes_what_it_has_done [];
            copy::row_056_copy_stays_within_one_registered_mapping [];
            copy::row_057_a_result_that_cannot_be_stored [];
            copy::row_058_any_descriptor_of_the_process_fills_and_protects [];
            copy::row_059_another_descriptor_cannot_move [];
            copy::row_060_copy_does_not_ask_for_the_right_to_write [];
            copy_unlocked::row_061_a_missing_source_is_waited_for [];
            copy_unlocked::row_062_the_destination_is_looked_up_again [];
            copy_unlocked::row_063_the_destination_becomes_other_memory [];
            copy_unlocked::row_064_the_destination_gets_another_mode [];
            copy_unlocked::row_065_pages_before_the_wait_stay_done [];
            zeropage::row_066_zeropage_maps_the_zero_page [];
            zeropage::row_067_zeropage_wants_an_empty_entry [Swap];
            zeropage::row_068_zeropage_replaces_markers_of_shared_memory [];
            zeropage::row_069_hugetlb_has_no_zeropage [Hugetlb(1)];
            zeropage::row_070_calls_on_a_page_that_is_in_the_cache [];
            zeropage::row_071_private_memory_hides_the_cache [];
            continuing::row_072_continue_wants_a_page_in_the_cache [];
            continuing::row_073_calls_beyond_the_end_of_the_file [];
            continuing::row_074_copy_stops_at_the_end_of_the_file [];
            continuing::row_075_anonymous_memory_has_no_continue [];
            continuing::row_076_continue_over_a_marker_of_protection [];
            continuing::row_077_a_private_page_is_copied_when_it_is_written [];
            poison::row_078_poison_of_a_hole_is_a_signal_to_whoever_touches_it [];
            poison::row_079_poison_wants_an_empty_entry [Swap];
            poison::row_080_what_poison_outlives [];
            poison::row_081_poison_of_shared_memory_goes_by_truncation_alone [];
            hugetlb::row_082_copy_replaces_poison_of_a_huge_page [Hugetlb(1)];
            hugetlb::row_083_copy_with_an_empty_pool [Hugetlb(2)];
            hugetlb::row_084_huge_pages_are_copied_whole [Hugetlb(2)];
            protecting::row_085_a_hole_without_the_feature_is_not_protected [];
            protecting::row_086_a_protected_hole_reads_as_zero_and_tells_of_a_write [];
            protecting::row_087_a_protected_hole_is_missing_first [];
            protecting::row_088_unprotect_takes_a_marker_away [];
            protecting::row_089_protect_without_a_wake_is_refused [];
            protecting::row_090_protect_steps_over_holes [];
            protecting::row_091_protect_stops_at_memory_that_is_not_registered [];
            protecting::row_092_memory_given_up_forgets_or_remembers [];
            protecting::row_093_mprotect_keeps_protection [];
            protecting::row_094_the_right_to_write_is_asked_first [];
            protecting::row_095_unprotecting_a_part_splits_a_huge_page [TransparentHuge];
            protecting::row_096_protection_survives_the_swap [Swap];
            protecting::row_097_async_protection_records_writes [];
            protecting::row_098_a_scan_can_insist_on_async_protection [];
            moving::row_099_move_takes_the_page_along [];
            moving::row_100_a_hole_is_moved_on_request [];
            moving::row_101_move_wants_an_empty_destination [];
            moving::row_102_move_stops_at_a_hole [];
            moving::row_103_markers_do_not_move [];
            moving::row_104_a_page_loses_its_protection_when_it_moves [];
            moving::row_105_a_swapped_page_keeps_its_protection_when_it_moves [Swap];
            moving::row_106_a_page_with_other_users_does_not_move [Swap, Ksm, Pin];
            moving::row_107_a_page_moves_again_once_its_owner_has_written_to_it [];
            moving::row_108_memory_that_does_not_move [Hugetlb(1)];
            moving::row_109_both_ends_of_a_move_are_mapped [];
            moving::row_110_a_huge_page_moves_whole_or_in_parts [TransparentHuge];
            moving::row_111_a_huge_page_with_other_users_does_not_move [TransparentHuge, Pin];
            moving::row_112_pages_move_in_ascending_order [];
            moving::row_113_who_waits_for_a_moved_hole_faults_again [];
            events::row_114_memory_is_given_up_when_the_event_is_read [];
            events::row_115_calls_that_fill_are_refused_while_an_event_is_unread [];
            events::row_116_an_unread_event_is_looked_for_before_the_arguments [];
            events::row_117_a_moving_mremap_is_told_twice [];
            events::row_118_mremap_can_leave_the_old_range_registered [];
            events::row_119_mremap_without_its_event_unregisters [];
            events::row_120_a_fork_gives_the_child_a_descriptor [];
            events::row_121_a_child_without_the_event_is_not_registered [];
            events::row_122_an_inherited_descriptor_is_about_the_parent [];
            events::row_123_calls_on_the_memory_of_the_dead [];
            kvm::row_124_a_vcpu_waits_for_a_missing_page [Vcpu];
            kvm::row_125_a_page_taken_from_a_guest_is_missing_again [Vcpu];
            kvm::row_126_a_guest_reads_protected_pages_and_tells_of_writes [Vcpu];
            kvm::row_127_guest_memory_files_accept_async_protection_alone [GuestMemfd];
            handshake::row_128_what_6_18_does_not_have_is_an_invalid_argument [];
            register::row_129_the_newest_kernel_does_not_drop_protection [Newest];
            copy_unlocked::row_130_a_fatal_signal_ends_a_copy [];
        }
    };
}

macro_rules! table {
    ($($subject:ident::$row:ident [$($need:expr),*];)*) => {
        /// All rows, in the order of their numbers.
        pub static ROWS: &[Row] = &[
            $(Row { name: stringify!($row), needs: &[$($need),*], run: $subject::$row },)*
        ];
    };
}

for_each_row!(table);
