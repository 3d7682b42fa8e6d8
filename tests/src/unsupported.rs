//! A system without what the tests of whole programs need: there is one program of them
//! to be called, and it says so.

/// Transfers between Linux's TCP and ours.
pub mod interop {
    /// What `--bin interop` does.
    pub mod program {
        use std::process::ExitCode;

        /// Says that there is nothing to be compared with.
        pub fn main() -> ExitCode {
            eprintln!("interop: needs Linux, whose TCP it is about");
            ExitCode::FAILURE
        }
    }
}
