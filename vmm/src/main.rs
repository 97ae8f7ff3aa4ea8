//! The `godwit` binary.

fn main() -> std::process::ExitCode {
    godwit_vmm::cli::main()
}
