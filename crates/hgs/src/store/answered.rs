//! Challenges of TPM mode that were answered: none is answered twice, whichever nodes it is sent to.

use time::{Duration, OffsetDateTime};

use super::Store;
use crate::error::Result;
use crate::hex;

/// A node whose clock is ahead must not forget what one that is behind would still take.
const CLOCKS: Duration = Duration::hours(1);

impl Store {
    /// Remembers a challenge's nonce until it has expired everywhere; whether it is the first time.
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
            .bind(hex::encode(nonce))
            .bind(expires.unix_timestamp())
            .execute(&mut *transaction)
            .await?;
        transaction.commit().await?;
        Ok(inserted.rows_affected() == 1)
    }
}
