"""What stock AutoGuides of Pyro cannot do here."""

from pyro.infer.autoguide import AutoGuide

from ppl_med.programs.parameters import parts_of
from ppl_med.programs.sites import Program, is_local, stated_sites


def check_stock_guide(guide: Program | None) -> None:
    """Raise where an AutoGuide that has run proposes a latent of every case.

    It keeps a parameter for each case of the batch it saw first, so other batches would be given
    the latents of these cases.

    Raises:
        ValueError: If one does; it names the guide that reads the latent off the case.
    """
    for part in parts_of(guide):
        seen = getattr(part, "prototype_trace", None) if isinstance(part, AutoGuide) else None
        sites = {} if seen is None else stated_sites(seen, observed=False)
        local = sorted(name for name, site in sites.items() if is_local(site))
        if local:
            raise ValueError(
                f"{type(part).__name__} proposes {local[0]!r}, a latent of every case, by one "
                "value for each case of its first batch, and knows nothing of other cases; use "
                f"ConditionalNormal(encoder, site={local[0]!r}), which reads it off the case, and "
                "join it by Guides with a guide for the rest, such as "
                f"AutoNormal(poutine.block(model, hide=[{local[0]!r}]))"
            )
