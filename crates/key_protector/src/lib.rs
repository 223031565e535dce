//! key_protector
