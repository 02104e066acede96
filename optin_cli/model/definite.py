"""Cholesky factors of second moments, which rounding may leave with small negative eigenvalues."""

import torch


def damped_cholesky(matrix: torch.Tensor, shift: torch.Tensor | float) -> tuple[torch.Tensor, torch.Tensor]:
    """The lower factor of A + shift I, and the shift: ten times as large as often as it takes for A to be definite.

    That is seldom needed: where A is the covariance of what hardly varies, it may be nothing but what rounding left.

    Args:
        matrix: symmetric A (..., k, k). shift: above 0, (...) or one number.

    Raises:
        ValueError: A is not finite.
    """
    shift = torch.as_tensor(shift, dtype=matrix.dtype, device=matrix.device).expand(matrix.shape[:-2])
    while True:
        factor = matrix.clone()
        factor.diagonal(dim1=-2, dim2=-1).add_(shift[..., None])
        failed = torch.empty(matrix.shape[:-2], dtype=torch.int32, device=matrix.device)
        torch.linalg.cholesky_ex(factor, out=(factor, failed))
        if not bool(failed.any()):
            return factor, shift
        if not bool(matrix.isfinite().all()):
            raise ValueError("A second moment holds numbers that are not finite.")
        shift = torch.where(failed > 0, shift * 10, shift)
