//! The test bench: a fabric in a network namespace, real processes, real VMs, and a reaper that fails the run
//! when any of them survives.

pub mod across;
pub mod blank;
pub mod capture;
pub mod console;
pub mod denial;
pub mod exit;
pub mod faults;
pub mod garage;
pub mod host;
pub mod images;
pub mod process;
pub mod report;
pub mod request;
pub mod search;
pub mod second_agent;
pub mod ssh;
pub mod story;
pub mod tenant;
pub mod world;
