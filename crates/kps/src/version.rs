//! The two versions of key protection.

/// Which of the two forms of `rolltransportkey` was called (MS-KPS 2.2.3.10).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ApiVersion {
    /// v1.0.
    V1,
    /// v2.0, whose payload may carry policies.
    V2,
}

impl ApiVersion {
    /// Reads the version part of the path, `v1.0` or `v2.0`.
    #[must_use]
    pub fn from_path(text: &str) -> Option<Self> {
        match text {
            "v1.0" => Some(ApiVersion::V1),
            "v2.0" => Some(ApiVersion::V2),
            _ => None,
        }
    }

    /// As it is written into the payload.
    #[must_use]
    pub fn number(self) -> u32 {
        match self {
            ApiVersion::V1 => 1,
            ApiVersion::V2 => 2,
        }
    }
}
