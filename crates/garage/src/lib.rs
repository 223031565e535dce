//! garage
