//! Optimizer steps, in place.

use super::chunks::{CHUNK, Workers, vectorized};
use crate::ops::optimizer::Optimizer;

/// Moves a parameter against its gradient. `step` counts from 1.
pub(crate) fn update(
    workers: Workers<'_>,
    rule: &Optimizer,
    rate: f64,
    step: u64,
    parameter: &mut [f32],
    gradient: &[f32],
    states: &mut [Vec<f32>],
) {
    match *rule {
        Optimizer::Sgd {
            momentum,
            nesterov,
            decay,
        } => {
            let (rate, decay, momentum) = (rate as f32, decay as f32, momentum as f32);
            each_chunk(
                workers,
                parameter,
                gradient,
                states,
                |p, g, states| match states {
                    [velocity, ..] => {
                        for ((p, &g), v) in p.iter_mut().zip(g).zip(velocity.iter_mut()) {
                            let g = g + decay * *p;
                            *v = momentum * *v + g;
                            *p -= rate * if nesterov { g + momentum * *v } else { *v };
                        }
                    }
                    [] => p
                        .iter_mut()
                        .zip(g)
                        .for_each(|(p, &g)| *p -= rate * (g + decay * *p)),
                },
            );
        }
        Optimizer::Average { .. } => {
            let [decay, ..] = rule.step_values(rate, step);
            each_chunk(workers, parameter, gradient, states, |p, g, _| {
                p.iter_mut()
                    .zip(g)
                    .for_each(|(p, &g)| *p = decay * *p + (1.0 - decay) * g);
            });
        }
        Optimizer::Adam {
            beta1,
            beta2,
            epsilon,
            decay,
            decoupled,
        } => {
            let [size, root, shrink, _] = rule.step_values(rate, step);
            let added = if decoupled { 0.0 } else { decay as f32 };
            let (new1, new2) = ((1.0 - beta1) as f32, (1.0 - beta2) as f32);
            let (beta1, beta2, epsilon) = (beta1 as f32, beta2 as f32, epsilon as f32);
            each_chunk(workers, parameter, gradient, states, |p, g, states| {
                let [first, second, ..] = states else { return };
                let moments = first.iter_mut().zip(second.iter_mut());
                for ((p, &g), (m, v)) in p.iter_mut().zip(g).zip(moments) {
                    let g = g + added * *p;
                    *m = beta1 * *m + new1 * g;
                    *v = beta2 * *v + new2 * g * g;
                    *p = *p * shrink - size * *m / (v.sqrt() / root + epsilon);
                }
            });
        }
    }
}

/// Calls `work` with every chunk of a parameter, its gradient and its states.
fn each_chunk(
    workers: Workers<'_>,
    parameter: &mut [f32],
    gradient: &[f32],
    states: &mut [Vec<f32>],
    work: impl Fn(&mut [f32], &[f32], &mut [&mut [f32]]) + Sync + Send,
) {
    let mut states: Vec<_> = states
        .iter_mut()
        .map(|state| state.chunks_mut(CHUNK))
        .collect();
    let parts: Vec<_> = parameter
        .chunks_mut(CHUNK)
        .zip(gradient.chunks(CHUNK))
        .map(|(p, g)| {
            (
                p,
                g,
                states
                    .iter_mut()
                    .filter_map(Iterator::next)
                    .collect::<Vec<_>>(),
            )
        })
        .collect();
    workers.each(parts, |(p, g, mut states)| {
        vectorized(
            #[inline(always)]
            || work(p, g, &mut states),
        );
    });
}
