//! Rows from one transaction to another, as a stream.

use futures::StreamExt as _;

use super::Tx;

impl Tx<'_> {
    /// Sends the rows that `out` (`COPY ... TO STDOUT`) gives here to `into` (`COPY ... FROM STDIN`) there, a piece
    /// at a time. After an error both transactions are of no more use: their connections are to be closed.
    pub(crate) async fn copy_to(
        &mut self,
        out: &str,
        there: &mut Tx<'_>,
        into: &str,
    ) -> Result<(), sqlx::Error> {
        let mut rows = self.connection()?.copy_out_raw(out).await?;
        let mut sink = there.connection()?.copy_in_raw(into).await?;
        while let Some(piece) = rows.next().await {
            match piece {
                Ok(piece) => {
                    sink.send(piece).await?;
                }
                Err(error) => {
                    sink.abort("the rows could not be read to their end").await?;
                    return Err(error);
                }
            }
        }
        sink.finish().await?;
        Ok(())
    }
}
