//! A network namespace of one's own, with privileges or without.

use std::fs;
use std::io;

use rustix::process::{getegid, geteuid};
use rustix::thread::{UnshareFlags, unshare_unsafe};

/// How the namespace was come by.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Isolation {
    /// By the caller's own privilege.
    Privileged,
    /// In a user namespace, where the caller is root.
    UserNamespace,
}

/// Why there is no namespace.
#[derive(Debug, thiserror::Error)]
pub enum NamespaceError {
    /// Neither right was given.
    #[error(
        "this machine refuses a network namespace ({network}) and a user namespace ({user}): \
         run as root, or allow user namespaces (sysctl kernel.unprivileged_userns_clone=1, \
         user.max_user_namespaces; in a container, run it privileged)"
    )]
    Refused {
        /// What was said to a network namespace.
        network: io::Error,
        /// What was said to a user namespace.
        user: io::Error,
    },
    /// The system gave a namespace and then no rights in it.
    #[error(
        "{file} cannot be written in the new user namespace ({source}): run as root, or allow \
         unprivileged user namespaces (sysctl kernel.apparmor_restrict_unprivileged_userns=0)"
    )]
    Mapping {
        /// The file.
        file: &'static str,
        /// What the system said.
        source: io::Error,
    },
}

/// Moves the calling process into a new network namespace. Must be called
/// while the process has one thread: a namespace belongs to a thread, and a
/// user namespace is refused to a process with several.
pub fn enter() -> Result<Isolation, NamespaceError> {
    let (uid, gid) = (geteuid().as_raw(), getegid().as_raw());
    // SAFETY: descriptor tables stay shared; only UnshareFlags::FILES, which is
    // not asked for, could be unsound.
    let network = match unsafe { unshare_unsafe(UnshareFlags::NEWNET) } {
        Ok(()) => return Ok(Isolation::Privileged),
        Err(e) => e.into(),
    };
    // SAFETY: as above.
    unsafe { unshare_unsafe(UnshareFlags::NEWUSER | UnshareFlags::NEWNET) }
        .map_err(|e| NamespaceError::Refused { network, user: e.into() })?;
    // A group map may be written without privilege only by who has given up
    // setgroups(2) before (user_namespaces(7)).
    for (file, text) in [
        ("/proc/self/setgroups", "deny".to_owned()),
        ("/proc/self/uid_map", format!("0 {uid} 1")),
        ("/proc/self/gid_map", format!("0 {gid} 1")),
    ] {
        fs::write(file, text).map_err(|source| NamespaceError::Mapping { file, source })?;
    }
    Ok(Isolation::UserNamespace)
}
