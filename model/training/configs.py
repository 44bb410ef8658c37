"""Settings of the trainings: what decides a result, hence kept with the run.

The text beside a field's type is its line of help on the command line. Imports no torch, so that help comes at once.
"""

import json
from dataclasses import dataclass, field, fields
from typing import Annotated, Any, Literal

AdversaryKind = Literal["package", "light"]
Shares = tuple[tuple[int, float], ...]  # numbers, and how often each is drawn
Windows = tuple[tuple[int, int], ...]  # samples of a transform's window, and mel bands of its spectrum


# Of a field that came later: what was made before it, and does not name it, was made with its default. A field
# whose default is not what was done before goes without: runs from before it are not the same.
ADDED = {"added": True}


def before(settings: type[Any]) -> dict[str, Any]:
    """The fields of a dataclass of settings that were `ADDED`, with their defaults, as JSON gives them back."""
    known = {one.name: one.default for one in fields(settings) if "added" in one.metadata}
    plain: dict[str, Any] = json.loads(json.dumps(known))
    return plain


# What two trainings share, with the same help. Their lines stand in each: a dataclass has the fields that it inherits
# before its own, and help would begin with what nobody changes.
SpectralFloor = Annotated[float, "of full scale, that the distance of log-mel spectra is blind below"]
EnvelopeHeard = Annotated[float, "of the loudest segment's power, below which a segment's envelope does not count"]
EnvelopeStride = Annotated[int, "windows from one segment of the envelopes' distance to the next"]
PitchWindow = Annotated[int, "samples about a frame in which its pitch is looked for"]
PitchShortest = Annotated[int, "period that is looked for, in samples: 480 Hz"]
PitchLongest = Annotated[int, "period that is looked for, in samples: 71 Hz; the one before it is the last"]
PitchVoiced = Annotated[float, "of the normalised autocorrelation, above which a frame counts as voiced"]
PitchQuiet = Annotated[float, "root mean square below which a frame counts as silent"]
PitchOctaveCost = Annotated[float, "taken off the autocorrelation per octave of longer period: twice the period fits"]
PitchSpread = Annotated[float, "deviation of the bell about the real pitch that is to be told, in bins"]
CropGain = Annotated[tuple[float, float], "the least and the greatest gain of a crop, dB; its polarity is drawn, too"]
Betas = Annotated[tuple[float, float], "of AdamW: how much of its two running means stays in a step"]
WeightDecay = Annotated[float, "of AdamW, for all weights"]
RateFloor = Annotated[float, "of the peak, that the learning rate has fallen to at the end"]
ClipNorm = Annotated[float, "norm that a step's gradient is cut to"]
WaveformQuiet = Annotated[float, "root mean square that is added to a crop's own, which its samples' distance is of"]
AdversarialBetas = Annotated[tuple[float, float], "the same of the discriminator's AdamW, which decays no weights"]
KmeansRounds = Annotated[int, "of k-means, for each codebook"]


@dataclass(frozen=True)
class CodecTraining:
    """Settings of a codec run."""

    steps: Annotated[int, "of the optimiser"] = 8000
    batch: Annotated[int, "crops in a step"] = 8
    seconds: Annotated[float, "of a crop"] = 1.0
    rate: Annotated[float, "learning rate at its peak"] = 8e-4
    warmup: Annotated[int, "steps until the learning rate is at its peak"] = 200
    seed: Annotated[int, "of everything that is drawn; the same one gives the same weights"] = 0
    music_share: Annotated[float, "of the crops that are music, where there are both kinds"] = 0.25
    commitment: Annotated[float, "weight of the latents' distance to their codes"] = 0.1
    spread: Annotated[float, "weight of the shortfall of the latents' effective dimensions, in nats"] = 0.1
    dimensions: Annotated[float, "that the latents should have at least; left alone they collapse to two or three"] = (
        12.0
    )
    unquantized: Annotated[float, "share of the rows whose decoder hears the latents themselves"] = 0.2
    mel_weight: Annotated[
        float, "of the auxiliary task: read the frame's mel frame off the quantised latent, linearly"
    ] = 0.5
    waveform_weight: Annotated[float, "of the samples' distance"] = 0.1
    envelope_weight: Annotated[float, "of the envelopes' distance"] = 1.0
    kmeans_at: Annotated[
        tuple[int, ...], "steps that refit the codebooks: early latents drift faster than an EMA; separated by commas"
    ] = (300, 1000, 2500)
    dead_code_share: Annotated[float, "of the mean use of a code, below which it restarts (the package: 2 of 4.7)"] = (
        0.2
    )
    start_from: Annotated[str, "checkpoint of another run, whose weights this one begins with"] = ""
    freeze_encoder_from: Annotated[int, "step from which only the decoder learns; -1 = never"] = -1
    adversarial_from: Annotated[int, "step from which the discriminator takes part; -1 = never"] = -1
    adversarial_rate: Annotated[float, "learning rate of the discriminator"] = 3e-4
    adversarial_share: Annotated[float, "norm of the adversarial gradient at the samples, of that of the distances"] = (
        0.5
    )
    feature_weight: Annotated[float, "of the features' distance, beside the hinge loss"] = 3.0
    adversary: Annotated[AdversaryKind, "package: encodec's discriminator; light: a smaller one, for a CPU"] = "package"
    bf16: Annotated[bool, "encoder and decoder under bfloat16 autocast; quantiser and losses stay in float32"] = False
    depths: Shares = field(default=((1, 0.15), (2, 0.15), (4, 0.20), (8, 0.50)), metadata=ADDED)  # codebooks of a step
    spectral_windows: Windows = field(default=((2048, 128), (1024, 80), (512, 40)), metadata=ADDED)
    spectral_floor: SpectralFloor = field(default=1e-4, metadata=ADDED)
    envelope_heard: EnvelopeHeard = field(default=1e-3, metadata=ADDED)
    envelope_stride: EnvelopeStride = field(default=10, metadata=ADDED)
    betas: Betas = field(default=(0.8, 0.99), metadata=ADDED)
    weight_decay: WeightDecay = field(default=0.01, metadata=ADDED)
    rate_floor: RateFloor = field(default=0.02, metadata=ADDED)
    clip_norm: ClipNorm = field(default=1.0, metadata=ADDED)
    crop_gain_db: CropGain = field(default=(-12.0, 6.0), metadata=ADDED)
    kmeans_seconds: Annotated[float, "of audio whose latents the codebooks are fitted to"] = field(
        default=300.0, metadata=ADDED
    )
    kmeans_rounds: KmeansRounds = field(default=12, metadata=ADDED)
    restart_every: Annotated[int, "steps from one look for dead codes to the next"] = field(default=50, metadata=ADDED)
    waveform_quiet: WaveformQuiet = field(default=0.01, metadata=ADDED)
    adversarial_betas: AdversarialBetas = field(default=(0.5, 0.9), metadata=ADDED)


@dataclass(frozen=True)
class SourceFilterTraining:
    """Settings of a run of a codec whose decoder makes tones."""

    steps: Annotated[int, "of the optimiser"] = 8000
    batch: Annotated[int, "crops in a step"] = 12
    frames: Annotated[int, "of a crop"] = 72
    warm_frames: Annotated[
        int, "at a crop's beginning that the waveform's distances leave out: the decoder's history is missing"
    ] = 8
    rate: Annotated[float, "learning rate at its peak"] = 1e-3
    warmup: Annotated[int, "steps until the learning rate is at its peak"] = 100
    seed: Annotated[int, "of everything that is drawn; the same one gives the same weights"] = 0
    music_share: Annotated[float, "of the crops that are music, where there are both kinds"] = 0.3
    kmeans_at: Annotated[
        tuple[int, ...], "steps that fit the codebooks, separated by commas; before the first, nothing is quantised"
    ] = (60, 300, 900)
    depths: Shares = ((1, 0.25), (2, 0.15), (4, 0.20), (8, 0.40))  # codebooks of a row
    unquantized: Annotated[float, "share of the rows whose decoder hears the latents themselves"] = 0.1
    redrawn: Annotated[float, "share of the frames whose codebooks 3 to 8 are drawn anew, in rows of 8"] = 0.0
    decay: Annotated[float, "of the running means of the codebooks"] = 0.98
    dead_share: Annotated[float, "of the mean use of a code, below which it restarts"] = 0.1
    waveform_from: Annotated[int, "step from which samples are made; before it, tokens alone are trained"] = 1000
    waveform_weight: Annotated[float, "of the samples' distance"] = 1.0
    envelope_from: Annotated[int, "step from which the envelopes' distance counts; -1 = never"] = -1
    envelope_weight: Annotated[float, "of the envelopes' distance"] = 0.5
    mel_weight: Annotated[float, "of reading the log-mel spectrum off the tokens"] = 1.0
    low_weight: Annotated[float, "of reading the linear spectrum below 1.9 kHz off the tokens"] = 0.5
    notes_weight: Annotated[float, "of reading the semitones off the tokens"] = 0.5
    pitch_weight: Annotated[float, "of reading the pitch off the tokens"] = 0.15
    voicing_weight: Annotated[float, "of reading voicing off the tokens"] = 0.2
    commitment: Annotated[float, "weight of the latents' distance to their codes"] = 0.1
    idle_weight: Annotated[float, "of what pulses would add to music and sines to speech, nats of their level"] = 0.02
    idle_nats: Annotated[float, "below full scale, where pulses may stay in music, and sines in speech"] = field(
        default=9.0, metadata=ADDED
    )
    predict_weight: Annotated[float, "of the next frames' first codebook, told from the ones before"] = 0.05
    predict_frames: Annotated[int, "that are told so, one after the other"] = field(default=2, metadata=ADDED)
    average: Annotated[float, "how much of the weights' moving average, which is exported, stays in a step"] = 0.999
    freeze_tokens_from: Annotated[int, "step from which only the decoder learns; -1 = never"] = -1
    start_from: Annotated[str, "checkpoint of another run, whose weights this one begins with"] = ""
    bf16: Annotated[bool, "encoder and decoder's trunk under bfloat16 autocast; all else in float32"] = False
    tone_windows: Windows = field(default=((2048, 128), (1024, 80), (512, 64), (240, 20)), metadata=ADDED)
    tone_floor: Annotated[float, "of full scale, that the samples' distance is blind below"] = field(
        default=1e-4, metadata=ADDED
    )
    note_window: Annotated[int, "samples of the long window of the samples' distance, which tells low notes"] = field(
        default=8192, metadata=ADDED
    )
    note_hop: Annotated[int, "samples from one of these windows to the next"] = field(default=2048, metadata=ADDED)
    note_bins: Annotated[int, "of these windows' spectra that count: up to 2.1 kHz"] = field(
        default=720, metadata=ADDED
    )
    notes: Annotated[int, "semitones that these spectra are read as"] = field(default=72, metadata=ADDED)
    envelope_heard: EnvelopeHeard = field(default=1e-3, metadata=ADDED)
    envelope_stride: EnvelopeStride = field(default=10, metadata=ADDED)
    pitch_window: PitchWindow = field(default=1024, metadata=ADDED)
    pitch_shortest: PitchShortest = field(default=50, metadata=ADDED)
    pitch_longest: PitchLongest = field(default=340, metadata=ADDED)
    pitch_voiced: PitchVoiced = field(default=0.55, metadata=ADDED)
    pitch_quiet: PitchQuiet = field(default=0.003, metadata=ADDED)
    pitch_octave_cost: PitchOctaveCost = field(default=0.08, metadata=ADDED)
    pitch_spread: PitchSpread = field(default=1.0, metadata=ADDED)
    betas: Betas = field(default=(0.8, 0.98), metadata=ADDED)
    weight_decay: WeightDecay = field(default=0.01, metadata=ADDED)
    rate_floor: RateFloor = field(default=0.02, metadata=ADDED)
    clip_norm: ClipNorm = field(default=1.0, metadata=ADDED)
    crop_gain_db: CropGain = field(default=(-12.0, 6.0), metadata=ADDED)
    kmeans_batches: Annotated[int, "whose latents the codebooks are fitted to"] = field(default=16, metadata=ADDED)
    kmeans_rounds: KmeansRounds = field(default=12, metadata=ADDED)
    least_use: Annotated[float, "vectors that a code's mean is of at least: its running sum is divided by no fewer"] = (
        field(default=1e-3, metadata=ADDED)
    )
    average_delay: Annotated[int, "at step n no more than (n + 1) / (n + this) of the moving average stays"] = field(
        default=10, metadata=ADDED
    )


@dataclass(frozen=True)
class DecoderTraining:
    """Settings of a decoder run."""

    decoder: Annotated[Literal["same", "harmonic"], "harmonic: give a `frame` decoder oscillators first"] = "same"
    steps: Annotated[int, "of the optimiser, after those of the reader"] = 4000
    reader_steps: Annotated[int, "of a harmonic decoder's reader alone, before all else"] = 4000
    reader_batch: Annotated[int, "crops in a step of the reader"] = 12
    reader_frames: Annotated[int, "of a crop of the reader"] = 80
    reader_rate: Annotated[float, "learning rate of the reader"] = 1e-3
    pitch_weight: Annotated[float, "of the reader's own distances while all learns"] = 0.3
    true_pitch: Annotated[float, "share of rows that sing at the real pitch rather than the one that was read"] = 0.5
    batch: Annotated[int, "crops in a step"] = 8
    frames: Annotated[int, "of a crop"] = 40
    context: Annotated[int, "frames before the crop that the decoder hears and that are not judged"] = 16
    rate: Annotated[float, "learning rate at its peak"] = 2e-4
    warmup: Annotated[int, "steps until the learning rate is at its peak"] = 50
    seed: Annotated[int, "of everything that is drawn; the same one gives the same weights"] = 0
    music_share: Annotated[float, "of the crops that are music, where there are both kinds"] = 0.25
    convergence_weight: Annotated[float, "of the spectral convergence"] = 1.0
    envelope_weight: Annotated[float, "of the envelopes' distance"] = 1.0
    waveform_weight: Annotated[float, "of the samples' distance"] = 0.1
    loudness_weight: Annotated[float, "of the loudness' distance"] = 0.3
    average: Annotated[float, "how much of the weights' moving average, which is what is exported, stays in a step"] = (
        0.995
    )
    adversary: Annotated[AdversaryKind, "package: encodec's discriminator; light: a smaller one, for a CPU"] = "light"
    adversarial_from: Annotated[
        int, "step from which the decoder learns; until then the discriminator alone; -1 = never"
    ] = 60
    adversarial_share: Annotated[float, "norm of the adversarial gradient at the samples, of that of the distances"] = (
        0.5
    )
    adversarial_rate: Annotated[float, "learning rate of the discriminator"] = 1e-3
    feature_weight: Annotated[float, "of the features' distance, beside the hinge loss"] = 2.0
    speech_hours: Annotated[float, "of training clips of speech whose codes are made"] = 2.5
    music_hours: Annotated[float, "of training clips of music whose codes are made"] = 0.8
    bf16: Annotated[bool, "decoder under bfloat16 autocast; losses stay in float32"] = False
    depths: Shares = field(default=((1, 0.15), (2, 0.15), (4, 0.20), (8, 0.50)), metadata=ADDED)  # codebooks of a row
    spectral_windows: Windows = field(default=((2048, 128), (1024, 80), (512, 40)), metadata=ADDED)
    spectral_floor: SpectralFloor = field(default=1e-4, metadata=ADDED)
    envelope_heard: EnvelopeHeard = field(default=1e-3, metadata=ADDED)
    envelope_stride: EnvelopeStride = field(default=10, metadata=ADDED)
    loudness_level_db: Annotated[float, "sound pressure at which the loudness' distance takes a crop to be played"] = (
        field(default=72.0, metadata=ADDED)
    )
    loudness_masking: Annotated[float, "share of the softer loudness that a difference has to exceed"] = field(
        default=0.25, metadata=ADDED
    )
    loudness_added: Annotated[float, "weight of sound that was added, beside all differences"] = field(
        default=0.3, metadata=ADDED
    )
    pitch_window: PitchWindow = field(default=1024, metadata=ADDED)
    pitch_shortest: PitchShortest = field(default=50, metadata=ADDED)
    pitch_longest: PitchLongest = field(default=340, metadata=ADDED)
    pitch_voiced: PitchVoiced = field(default=0.55, metadata=ADDED)
    pitch_quiet: PitchQuiet = field(default=0.003, metadata=ADDED)
    pitch_octave_cost: PitchOctaveCost = field(default=0.08, metadata=ADDED)
    pitch_spread: PitchSpread = field(default=1.0, metadata=ADDED)
    share_full_hertz: Annotated[float, "below which voiced sound is to be told as all harmonics"] = field(
        default=2500.0, metadata=ADDED
    )
    share_none_hertz: Annotated[float, "above which voiced sound is to be told as no harmonics"] = field(
        default=7000.0, metadata=ADDED
    )
    betas: Betas = field(default=(0.8, 0.99), metadata=ADDED)
    weight_decay: WeightDecay = field(default=0.01, metadata=ADDED)
    rate_floor: RateFloor = field(default=0.02, metadata=ADDED)
    clip_norm: ClipNorm = field(default=1.0, metadata=ADDED)
    waveform_quiet: WaveformQuiet = field(default=0.01, metadata=ADDED)
    reader_betas: Annotated[tuple[float, float], "the same of the reader's AdamW"] = field(
        default=(0.9, 0.999), metadata=ADDED
    )
    reader_weight_decay: Annotated[float, "of the reader's AdamW"] = field(default=0.05, metadata=ADDED)
    adversarial_betas: AdversarialBetas = field(default=(0.5, 0.9), metadata=ADDED)


@dataclass(frozen=True)
class LMTraining:
    """Settings of a language-model run."""

    steps: Annotated[int, "of the optimiser"] = 3000
    batch: Annotated[int, "sequences in a step"] = 8
    length: Annotated[int, "positions of a sequence"] = 512
    long_from: Annotated[
        float, "of the steps: from then on half as many sequences, twice as long, so that the window slides"
    ] = 0.75
    rate: Annotated[float, "learning rate at its peak"] = 1.5e-3
    warmup: Annotated[int, "steps until the learning rate is at its peak"] = 150
    weight_decay: Annotated[float, "of the matrices"] = 0.1
    seed: Annotated[int, "of everything that is drawn; the same one gives the same weights"] = 0
    music_share: Annotated[float, "of the sequences that are music, where there are both kinds"] = 0.35
    decoded_share: Annotated[float, "of the sequences: mel from decoded audio"] = 0.5
    noise: Annotated[float, "upper end of the noise on decoded mel, in deviations of a band"] = 0.2
    masked_share: Annotated[float, "of the sequences: no mel at all"] = 0.1
    span_share: Annotated[float, "of the sequences: masked spans"] = 0.3
    fine_weight: Annotated[float, "of the depth decoder's loss"] = 0.3
    fine_positions: Annotated[float, "of the positions: where the depth decoder is trained"] = 0.25
    start_from: Annotated[
        str,
        "checkpoint of another run on the same codec's tokens, or a bundle, whose weights this one begins with",
    ] = ""
    recalled: Shares = field(
        default=((2, 0.15), (4, 0.2), (8, 0.6), (0, 0.05)), metadata=ADDED
    )  # codes of the frame before that are known
    judged_silence: Annotated[
        float, "seconds at the beginning of a silence that count in the loss, and then the sound that ends it; 0 = all"
    ] = field(default=0.0, metadata=ADDED)
    quiet_share: Annotated[float, "of a clip's loud frames, below which a frame is silent: -34 dB"] = field(
        default=0.02, metadata=ADDED
    )
    bf16: Annotated[bool, "under bfloat16 autocast; the losses stay in float32"] = False
    betas: Betas = field(default=(0.9, 0.95), metadata=ADDED)
    rate_floor: RateFloor = field(default=0.02, metadata=ADDED)
    clip_norm: ClipNorm = field(default=1.0, metadata=ADDED)
    spans: Annotated[tuple[int, int], "the fewest and the most masked spans of a sequence that has them"] = field(
        default=(1, 5), metadata=ADDED
    )
    span_frames: Annotated[tuple[int, int], "the shortest and the longest of these spans"] = field(
        default=(2, 79), metadata=ADDED
    )


@dataclass(frozen=True)
class TokenSettings:
    """What decides the content of a token set; kept with it."""

    speech_hours: Annotated[float, "of speech at most; the rest is left out by a hash of the file's name"] = 1e9
    music_hours: Annotated[float, "of music at most"] = 1e9
    document_seconds: Annotated[float, "longer clips are cut"] = 30.0
    takes: Annotated[int, "versions of each training clip, each with its own speed and gain"] = 1
    augment: Annotated[bool, "change the speed of some versions, and the gain of all"] = True
    speed_share: Annotated[float, "of the versions, whose speed changes"] = field(default=0.5, metadata=ADDED)
    speeds: Annotated[tuple[float, float], "the slowest and the fastest of these"] = field(
        default=(0.9, 1.1), metadata=ADDED
    )
    gain_db: Annotated[tuple[float, float], "the least and the greatest gain of a version"] = field(
        default=(-6.0, 6.0), metadata=ADDED
    )
    seed: Annotated[int, "of the versions"] = 0
    longest_pause: Annotated[
        float, "seconds of silence that training speech keeps at a stretch; 0 leaves it as it is"
    ] = 0.5
    quiet_share: Annotated[float, "of a clip's loud frames, below which a frame is silent: -34 dB"] = field(
        default=0.02, metadata=ADDED
    )
    end_pause: Annotated[float, "and at its beginning and its end, where nothing follows that would end it"] = 0.2
    pause_every: Annotated[
        float, "seconds, on average, to the next pause put into training audio: digital silence or hiss; 0 = none"
    ] = 8.0
    pause_gap: Annotated[float, "seconds of sound between two of those pauses at least"] = field(
        default=0.5, metadata=ADDED
    )
    pause_seconds: Annotated[tuple[float, float], "the shortest and the longest of those pauses"] = (0.05, 0.6)
    hiss_share: Annotated[float, "of those pauses that hold hiss"] = 0.5
    hiss_db: Annotated[tuple[float, float], "the softest and the loudest hiss, of full scale"] = field(
        default=(-80.0, -45.0), metadata=ADDED
    )
    served: Shares = field(
        default=((8, 0.7), (4, 0.2), (2, 0.1)), metadata=ADDED
    )  # codebooks that the decoded mel is made with
