//! hgs
