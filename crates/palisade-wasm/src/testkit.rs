//! Tests that hold for every backend of a WebAssembly engine. Each takes an open sandbox and panics when something is wrong;
//! [`wasm_backend_tests!`](crate::wasm_backend_tests) makes them tests of a backend.

use std::sync::Arc;
use std::time::Duration;

use palisade_core::{
    Artifact, BackendOptions, Call, Execution, HostFunctions, Module, Outcome, Phase, Policy, Prepared, PreparedExt,
    Quota, Resource, Result, Sandbox,
};

pub mod artifacts;
pub mod cancel;
pub mod host;
pub mod host_functions;
pub mod isolation;
pub mod limits;
pub mod soak;
pub mod wasi_testsuite;

/// Makes each test of [`testkit`](crate::testkit) one of a backend, whose type has an `open`: `wasm_backend_tests!(Backend);`.
/// Not [`soak`], which needs a process of its own, and [`wasi_testsuite`], which is a program of its own.
#[macro_export]
macro_rules! wasm_backend_tests {
    ($backend:ty) => {
        /// One sandbox for all tests: opening reserves address space.
        fn sandbox() -> &'static $backend {
            static SANDBOX: std::sync::OnceLock<$backend> = std::sync::OnceLock::new();
            SANDBOX.get_or_init(|| <$backend>::open(&$crate::testkit::options(None)).expect("the backend opens"))
        }

        #[test]
        fn dropping_a_call_releases_everything_whatever_the_guest_does() {
            let one_slot = <$backend>::open(&$crate::testkit::options(Some(1))).expect("the backend opens");
            $crate::testkit::cancel::dropping_a_call_releases_everything_whatever_the_guest_does(&one_slot);
        }

        $crate::wasm_backend_tests! { @each
            host random_bytes_are_interrupted
            host files_are_brought_to_the_disk
            host special_file_systems_are_refused
            host the_input_of_a_host_function_is_charged
            host every_stack_size_can_be_used_beside_all_others
            limits wall_time_stops_a_loop
            limits wall_time_stops_a_start_function
            limits wall_time_stops_a_reactors_initialization
            limits wall_time_stops_a_sleep
            limits wall_time_stops_between_bulk_operations
            limits wall_time_stops_a_tree_of_calls_without_loops
            limits a_guest_that_ends_too_late_was_too_late
            limits cpu_time_stops_a_loop_but_not_a_sleep
            limits exactly_the_fuel_used_is_enough
            limits fuel_covers_start_functions_and_the_length_of_bulk_operations
            limits initial_memory_counts_to_the_byte
            limits grown_memory_counts_with_the_initial_one
            limits growing_beyond_the_modules_own_maximum_is_the_guests_business
            limits tables_count_as_memory
            limits a_declared_gigabyte_is_refused_before_it_is_mapped
            limits modules_too_large_for_the_pool_still_run
            limits what_the_host_holds_counts_as_memory
            limits the_stack_is_bounded_by_its_own_quota
            limits output_and_log_keep_exactly_their_limit
            limits exactly_the_allowed_number_of_host_calls_is_made
            limits quotas_of_calls_begin_anew_and_memory_stays
            limits a_sibling_is_not_disturbed
            artifacts what_is_no_module_is_refused
            artifacts other_kinds_of_artifact_are_unsupported
            artifacts every_missing_import_is_listed_with_advice
            artifacts an_import_of_the_wrong_type_is_refused
            artifacts a_wrong_entry_is_named_with_those_that_exist
            artifacts malformed_arguments_and_policies_are_refused
            artifacts traps_are_told_apart_and_name_the_function
            artifacts a_module_says_what_it_is
            host_functions results_and_errors_reach_the_guest
            host_functions a_panic_ends_that_call_only
            host_functions a_function_that_never_returns_is_ended_by_the_deadline
            host_functions a_blocking_function_is_left_behind_by_the_deadline
            host_functions what_is_not_granted_is_denied_by_name
            host_functions a_grant_of_what_does_not_exist_is_refused
            host_functions results_count_as_memory
            host_functions ranges_outside_the_memory_trap
            host_functions hundreds_of_calls_wait_on_one_thread
            isolation nothing_of_the_previous_instance_is_visible
            cancel a_token_ends_a_call_wherever_it_is
            cancel a_token_cancelled_before_the_call_lets_no_guest_code_run
            cancel a_stale_token_does_not_hit_the_next_call
            cancel after_an_abnormal_end_an_instance_serves_no_more_calls
            cancel a_spinning_guest_gives_its_executor_a_turn
        }
    };
    (@each $($module:ident $name:ident)*) => {
        $(#[test]
        fn $name() {
            $crate::testkit::$module::$name(sandbox());
        })*
    };
}

/// The options of a backend, with a bound on its instances or without.
pub fn options(instances_max: Option<u32>) -> BackendOptions {
    let options = BackendOptions::new();
    match instances_max {
        Some(max) => options.instances_max(max),
        None => options,
    }
}

pub(crate) fn block_on<T>(future: impl Future<Output = T>) -> T {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().expect("a runtime starts");
    runtime.block_on(future)
}

pub(crate) async fn load(sandbox: &dyn Sandbox, wat: &str) -> Result<Arc<dyn Module>> {
    let wasm = wat::parse_str(wat).expect("the test's module is well-formed");
    sandbox.load(Artifact::wasm(wasm)).await
}

pub(crate) async fn prepare(
    sandbox: &dyn Sandbox,
    wat: &str,
    quota: Quota,
    functions: HostFunctions,
) -> Result<Arc<dyn Prepared>> {
    let mut policy = Policy { quota, ..Policy::default() };
    policy.grants.host_functions = functions.names().map(str::to_owned).collect();
    load(sandbox, wat).await?.prepare(policy, functions)
}

/// Runs `_start` of a fresh instance.
pub(crate) fn run(sandbox: &dyn Sandbox, wat: &str, quota: Quota) -> Execution {
    run_call(sandbox, wat, quota, HostFunctions::new(), Call::new())
}

pub(crate) fn run_call(
    sandbox: &dyn Sandbox,
    wat: &str,
    quota: Quota,
    functions: HostFunctions,
    call: Call,
) -> Execution {
    block_on(async { prepare(sandbox, wat, quota, functions).await?.run(call).await }).expect("the call is made")
}

/// No bound but wall time, so that a broken test ends.
pub(crate) fn generous() -> Quota {
    Quota { wall_time: Some(Duration::from_secs(60)), ..Quota::unlimited() }
}

pub(crate) fn wall_time(limit: Duration) -> Quota {
    Quota { wall_time: Some(limit), ..Quota::unlimited() }
}

/// Asserts that `resource` ran out in `phase`, by more than its limit.
#[track_caller]
pub(crate) fn assert_exceeded(execution: &Execution, resource: Resource, phase: Phase) {
    match &execution.outcome {
        Outcome::QuotaExceeded { resource: found, limit, used, phase: found_phase } => {
            assert_eq!((*found, *found_phase), (resource, phase), "{}", execution.outcome);
            assert!(used > limit, "{used} is not more than {limit}");
        }
        other => panic!("expected {resource} to run out, but the guest {other}"),
    }
}

/// Sleeps for as long as a clock can say.
pub(crate) const SLEEP: &str = r#"
(module
  (import "wasi_snapshot_preview1" "poll_oneoff" (func $poll (param i32 i32 i32 i32) (result i32)))
  (memory (export "memory") 1)
  ;; one subscription: monotonic clock, timeout of 2^64-1 ns, relative
  (data (i32.const 16) "\01\00\00\00")
  (data (i32.const 24) "\ff\ff\ff\ff\ff\ff\ff\ff")
  (func (export "_start") (drop (call $poll (i32.const 0) (i32.const 64) (i32.const 1) (i32.const 128)))))
"#;

pub(crate) const SPIN: &str = r#"(module (func (export "_start") (loop (br 0))))"#;
