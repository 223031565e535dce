//! Protectors by subject: what they are for, what breaks a rule, what is no protector at all.

mod hostile;
mod made;
mod recovery;
mod rules;
mod token;
