//! What several programs of this workspace read and write, each declared once: exit codes. A leaf crate, without libtorch and
//! without an asynchronous runtime.

mod exit_code;

pub use exit_code::{
    EXIT_CONFIG, EXIT_DATA, EXIT_IO, EXIT_NO_PERMISSION, EXIT_SOFTWARE, EXIT_STOPPED, EXIT_UNREACHABLE, EXIT_USAGE,
};
