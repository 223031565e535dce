//! Challenges of TPM mode that were answered: none is answered twice, whichever node gets the answer.

use data_encoding::HEXLOWER;
use time::{Duration, OffsetDateTime};

use super::open::Store;
use crate::error::Result;

/// A node whose clock is fast must not forget what one whose clock is slow would still accept.
const CLOCKS: Duration = Duration::hours(1);

impl Store {
    /// Stores a challenge's nonce until it has expired on every node. Returns whether this is the first answer to it.
    pub(crate) async fn first_answer(
        &self,
        nonce: &[u8; 32],
        expires: OffsetDateTime,
        now: OffsetDateTime,
    ) -> Result<bool> {
        let mut transaction = self.database.begin().await?;
        sqlx::query("DELETE FROM answered WHERE expires < $1")
            .bind((now - CLOCKS).unix_timestamp())
            .execute(&mut *transaction)
            .await?;
        let inserted = sqlx::query("INSERT INTO answered (nonce, expires) VALUES ($1, $2) ON CONFLICT DO NOTHING")
            .bind(HEXLOWER.encode(nonce))
            .bind(expires.unix_timestamp())
            .execute(&mut *transaction)
            .await?;
        transaction.commit().await?;
        Ok(inserted.rows_affected() == 1)
    }
}
