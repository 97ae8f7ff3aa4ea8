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
            handshake::row_128_what_6_18_does_not_have_is_an_invalid_argument [];
            register::row_129_the_newest_kernel_does_not_drop_protection [Newest];
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
