"""The embedded consortium: five synthetic hospitals whose notes are made here, from a seed, without any patient.

It exists so that `fedslm simulate` and the tests run offline, and so that what a federation gains can be measured.
Every note names two findings; the task is which service should see the patient, as multiple choice or as one sentence.

What makes the hospitals differ is what makes real ones differ: size (10:1), the mix of services (each has two
specialties), the layout of a note, and the words. One hospital writes "CP", the next "chest pain", a third "angina".
So a single hospital sees few cases outside its specialties, and other words than the others. Nothing else differs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate
from random import Random

from fedslm.data.example import Example
from fedslm.errors import DataError

SERVICES = (
    "cardiology",
    "dermatology",
    "gastroenterology",
    "neurology",
    "orthopedics",
    "psychiatry",
    "pulmonology",
    "urology",
)
"""The labels, in the order of every multiple-choice example's `choices`."""

MAX_NOTES = 12
"""No patient has more notes than this."""

HELD_OUT_PATIENTS = 300
"""Held-out patients at every hospital, however small, so that all are scored equally well."""

# Service -> findings, each in the words of the five hospitals, in the order of `_PROFILES`:
# emergency shorthand, full prose, clinical terms, plain bullets, British clinic.
FINDINGS: dict[str, tuple[tuple[str, str, str, str, str], ...]] = {
    "cardiology": (
        ("CP", "chest pain", "angina", "chest tightness", "central crushing pain"),
        ("palps", "palpitations", "irregular pulse", "fluttering heartbeat", "fast AF"),
        ("STEMI on ECG", "an abnormal heart tracing", "ST elevation", "ECG changes", "ST changes on ECG"),
        ("trop +", "a raised troponin", "elevated troponin", "high troponin", "trop rise"),
        ("bilat edema", "swollen ankles", "pitting edema", "ankle swelling", "ankle oedema"),
        ("murmur", "a loud heart murmur", "systolic murmur", "heart murmur", "pansystolic murmur"),
    ),
    "dermatology": (
        ("itchy rash", "an itching rash", "pruritic eruption", "itchy skin", "itchy erythema"),
        ("hives", "raised red wheals", "urticaria", "red welts", "nettle rash"),
        ("dark mole", "a mole that has changed", "atypical nevus", "changing mole", "pigmented naevus"),
        ("scaly plaques", "silvery scales on the elbows", "psoriatic plaques", "flaky patches", "psoriasis flare"),
        ("blisters", "blisters on both arms", "bullous lesions", "skin blisters", "bullae"),
        ("acne", "painful spots on the face", "nodular acne", "bad pimples", "cystic spots"),
    ),
    "gastroenterology": (
        ("abd pain", "pain in the belly", "epigastric tenderness", "stomach pain", "tummy ache"),
        ("N/V", "nausea and vomiting", "emesis", "throwing up", "being sick"),
        ("melena", "black tarry stools", "GI bleeding", "black stool", "malaena"),
        ("diarrhea", "watery stools", "chronic diarrhea", "loose stools", "diarrhoea"),
        ("jaundice", "yellow eyes", "icterus", "yellow skin", "jaundiced sclerae"),
        ("heartburn", "burning after meals", "reflux", "acid reflux", "dyspepsia"),
    ),
    "neurology": (
        ("HA", "a severe headache", "cephalgia", "bad headache", "thunderclap headache"),
        ("sz", "a seizure", "tonic-clonic seizure", "convulsion", "a fit"),
        ("L facial droop", "a drooping face", "facial palsy", "face droops", "facial weakness"),
        ("slurred speech", "speech that was hard to follow", "dysarthria", "slurring words", "muddled speech"),
        ("LOC", "a blackout", "loss of consciousness", "passed out", "funny turn"),
        ("tremor", "shaking hands", "resting tremor", "hand shakes", "pill-rolling tremor"),
    ),
    "orthopedics": (
        ("hip fx", "a broken hip", "femoral neck fracture", "hip fracture", "NOF fracture"),
        ("wrist deform", "a bent wrist after a fall", "distal radius fracture", "broken wrist", "Colles fracture"),
        ("knee swelling", "a swollen knee", "knee effusion", "puffy knee", "boggy knee"),
        ("LBP", "low back pain", "lumbar pain", "backache", "lumbago"),
        (
            "shoulder disloc",
            "a shoulder out of joint",
            "glenohumeral dislocation",
            "dislocated shoulder",
            "shoulder out",
        ),
        ("ankle sprain", "a twisted ankle", "ligament sprain", "rolled ankle", "inversion injury"),
    ),
    "psychiatry": (
        ("SI", "thoughts of ending life", "suicidal ideation", "suicidal thoughts", "wants to end it"),
        ("AH", "hearing voices", "auditory hallucinations", "hears voices", "voices talking"),
        ("anxious", "constant worry", "generalized anxiety", "very anxious", "bad nerves"),
        ("low mood", "deep sadness", "depressed affect", "sad all day", "low in mood"),
        ("panic", "attacks of panic", "panic disorder", "panic attacks", "panicky spells"),
        ("insomnia", "sleepless nights", "early waking", "cannot sleep", "poor sleep"),
    ),
    "pulmonology": (
        ("SOB", "shortness of breath", "dyspnea", "short of breath", "dyspnoea"),
        ("prod cough", "a cough with phlegm", "productive cough", "wet cough", "chesty cough"),
        ("wheeze", "a wheezing chest", "expiratory wheezing", "wheezy", "musical chest"),
        ("hemoptysis", "coughing up blood", "blood-streaked sputum", "bloody cough", "haemoptysis"),
        ("sats 86", "low oxygen", "hypoxemia", "oxygen low", "hypoxia on air"),
        ("crackles", "crackling lungs", "bibasal rales", "lung crackles", "bibasal creps"),
    ),
    "urology": (
        ("flank pain", "pain in the side to the groin", "renal colic", "kidney pain", "loin pain"),
        ("hematuria", "blood in the urine", "gross hematuria", "bloody urine", "haematuria"),
        ("dysuria", "burning on passing water", "urethral dysuria", "burning urine", "stinging waterworks"),
        ("urinary freq", "passing water very often", "urinary frequency", "urinates often", "frequency and urgency"),
        ("retention", "an inability to pass water", "urinary retention", "cannot urinate", "in retention"),
        ("nocturia x5", "getting up at night to urinate", "nocturia", "urinates at night", "up five times nightly"),
    ),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class EmbeddedHospital:
    """One synthetic hospital.

    Attributes:
      name: unique in the consortium.
      specialty: what the hospital sees most, and how it writes, in words.
      train: notes of the training patients, each patient's together.
      held_out: notes of other patients of the same hospital.
    """

    name: str
    specialty: str
    train: tuple[Example, ...]
    held_out: tuple[Example, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Case:
    """What a note says, before a hospital puts it in its own way."""

    age: int
    is_man: bool
    first: str
    second: str
    hours: int
    remark: int


@dataclass(frozen=True, slots=True, kw_only=True)
class _Profile:
    """How one hospital differs: `column` picks its words in `FINDINGS`, `write` lays out its notes."""

    name: str
    prefix: str
    services: tuple[str, str]
    style: str
    patients: int
    column: int
    write: Callable[[_Case], str]


def _write_emergency(case: _Case) -> str:
    remark = ("PMH: nil.", "PMH: DM2.", "Smoker.", "NKDA.", "Afebrile.")[case.remark]
    return f"{case.age}{'M' if case.is_man else 'F'} c/o {case.first} x{case.hours}h, {case.second}. {remark}"


def _write_prose(case: _Case) -> str:
    who, pronoun = ("man", "He") if case.is_man else ("woman", "She")
    remark = ("lives alone", "takes no medicines", "smokes", "has diabetes", "is retired")[case.remark]
    return f"A {case.age}-year-old {who} came in with {case.first} and {case.second}. {pronoun} {remark}."


def _write_soap(case: _Case) -> str:
    remark = ("vitals stable", "afebrile", "alert", "well nourished", "no allergies")[case.remark]
    return f"S: {case.age} y {'male' if case.is_man else 'female'}, {case.first}. O: {case.second}, {remark}."


def _write_bullets(case: _Case) -> str:
    remark = ("no meds", "smoker", "diabetic", "no allergies", "lives with family")[case.remark]
    return f"- {'man' if case.is_man else 'woman'}, {case.age}\n- {case.first}\n- {case.second}\n- {remark}"


def _write_clinic(case: _Case) -> str:
    who = "gent" if case.is_man else "lady"
    remark = ("Lives alone.", "Ex-smoker.", "T2DM.", "Nil else.", "Retired.")[case.remark]
    return f"{case.age}yr {who}, {1 + case.hours % 6}/7 hx of {case.first}; {case.second}. {remark}"


_PROFILES = (
    _Profile(
        name="harbor-emergency", prefix="HE", services=("cardiology", "neurology"), style="emergency shorthand",
        patients=10_000, column=0, write=_write_emergency,
    ),
    _Profile(
        name="st-brigid", prefix="SB", services=("pulmonology", "cardiology"), style="full prose",
        patients=9_000, column=1, write=_write_prose,
    ),
    _Profile(
        name="northfield", prefix="NF", services=("gastroenterology", "urology"), style="SOAP headings",
        patients=8_000, column=2, write=_write_soap,
    ),
    _Profile(
        name="lakeview", prefix="LV", services=("orthopedics", "neurology"), style="bullet lists",
        patients=6_000, column=3, write=_write_bullets,
    ),
    _Profile(
        name="wexcombe", prefix="WX", services=("dermatology", "psychiatry"), style="British clinic letters",
        patients=1_000, column=4, write=_write_clinic,
    ),
)  # fmt: skip


def build_hospitals(*, seed: int, scale: float = 1.0) -> tuple[EmbeddedHospital, ...]:
    """Builds the five hospitals, largest first.

    Patient ids are unique over all hospitals, no patient is in both `train` and `held_out`, and every service occurs in
    both at every hospital. About one note in six asks for free text (`choices` empty), the others are multiple choice.

    Args:
      seed: the same seed gives the same notes, another seed other ones.
      scale: factor on the number of patients, for quick tests; at least one patient per service remains.

    Raises:
      DataError: `scale` is not above 0.
    """
    return tuple(build_hospital(name, seed=seed, scale=scale) for name in hospital_names())


def hospital_names() -> tuple[str, ...]:
    """The hospitals' names, largest first."""
    return tuple(profile.name for profile in _PROFILES)


def build_hospital(name: str, *, seed: int, scale: float = 1.0) -> EmbeddedHospital:
    """Builds one hospital, exactly as `build_hospitals` does.

    Raises:
      DataError: there is no such hospital, or `scale` is not above 0.
    """
    profiles = {profile.name: profile for profile in _PROFILES}
    if name not in profiles:
        raise DataError(f"There is no embedded hospital '{name}'; there are {', '.join(profiles)}.")
    if not scale > 0:
        raise DataError(f"Expected scale={scale} > 0; 1.0 is the full consortium.")
    return _build_hospital(profiles[name], seed=seed, scale=scale)


def pooled_test(hospitals: Sequence[EmbeddedHospital], *, per_hospital: int | None = None) -> tuple[Example, ...]:
    """The federation's test set: multiple-choice held-out notes, equally many from each hospital, in hospital order.

    Args:
      hospitals: the hospitals to take from.
      per_hospital: how many from each; as many as the hospital with the fewest has when None.
    """
    scored = [multiple_choice(hospital.held_out) for hospital in hospitals]
    count = min(map(len, scored)) if per_hospital is None else per_hospital
    return tuple(example for examples in scored for example in examples[:count])


def multiple_choice(examples: Sequence[Example]) -> tuple[Example, ...]:
    """The examples that have choices, in their order."""
    return tuple(example for example in examples if example.choices)


def shuffle_answers(examples: Sequence[Example], *, seed: int) -> tuple[Example, ...]:
    """A control: the same prompts, patients and answers, but the answers are dealt out anew.

    Multiple-choice and free-text answers are each shuffled among themselves. Whatever a model learns from the result,
    it did not learn from the notes, so its accuracy on true examples cannot pass the majority rate but by chance.
    """
    rng = Random(seed)
    answers = {kind: [e.completion for e in examples if bool(e.choices) is kind] for kind in (False, True)}
    for pile in answers.values():
        rng.shuffle(pile)
    return tuple(replace(example, completion=answers[bool(example.choices)].pop()) for example in examples)


def _build_hospital(profile: _Profile, *, seed: int, scale: float) -> EmbeddedHospital:
    # `Random` hashes a string with SHA-512: the streams of two hospitals or two seeds have nothing in common.
    rng = Random(f"fedslm hospitals {seed} {profile.name}")
    mix = _draw_mix(profile, rng)
    sizes = [max(len(SERVICES), round(scale * patients)) for patients in (profile.patients, HELD_OUT_PATIENTS)]
    train, held_out = (
        tuple(_make_examples(profile, mix, ids, rng)) for ids in (range(sizes[0]), range(sizes[0], sum(sizes)))
    )
    specialty = f"{profile.services[0]} and {profile.services[1]}, {profile.style}"
    return EmbeddedHospital(name=profile.name, specialty=specialty, train=train, held_out=held_out)


def _draw_mix(profile: _Profile, rng: Random) -> list[float]:
    """Cumulative shares of `SERVICES`: Dirichlet(1) with a floor; the largest go to the hospital's specialties."""
    shares = sorted((rng.expovariate(1.0) for _ in SERVICES), reverse=True)
    floor = 0.02 * sum(shares)
    others = [service for service in SERVICES if service not in profile.services]
    rng.shuffle(others)
    share_of = dict(zip((*profile.services, *others), shares, strict=True))
    return list(accumulate(share_of[service] + floor for service in SERVICES))


def _make_examples(profile: _Profile, mix: list[float], patients: range, rng: Random) -> Iterator[Example]:
    for index in patients:
        # The first patients take the services in turn: even the rarest occurs at every hospital, at any scale.
        turn = index - patients.start
        home = SERVICES[turn] if turn < len(SERVICES) else rng.choices(SERVICES, cum_weights=mix)[0]
        for note in range(_draw_note_count(rng)):
            is_home = note == 0 or rng.random() < 0.7
            service = home if is_home else rng.choices(SERVICES, cum_weights=mix)[0]
            is_choice = turn < len(SERVICES) or rng.random() < 5 / 6
            yield _make_example(profile, service, f"{profile.prefix}-{index:05d}", is_choice, rng)


def _draw_note_count(rng: Random) -> int:
    """Geometric with mean 1.5, at most `MAX_NOTES`: most patients come once, a few come often."""
    count = 1
    while count < MAX_NOTES and rng.random() < 0.35:
        count += 1
    return count


def _make_example(profile: _Profile, service: str, patient_id: str, is_choice: bool, rng: Random) -> Example:
    first, second = (_word(row, profile.column, rng) for row in rng.sample(FINDINGS[service], 2))
    case = _Case(
        age=_below(rng, 70) + 19,
        is_man=rng.random() < 0.5,
        first=first,
        second=second,
        hours=1 + _below(rng, 12),
        remark=_below(rng, 5),
    )
    note = profile.write(case)
    if is_choice:
        return Example(prompt=ask_service(note), completion=service, patient_id=patient_id, choices=SERVICES)
    return Example(prompt=ask_sentence(note), completion=f"Refer to {service} for {first}.", patient_id=patient_id)


def _word(row: Sequence[str], column: int, rng: Random) -> str:
    # Staff move between hospitals: one word in four is from anywhere.
    return row[column] if rng.random() < 0.75 else row[_below(rng, len(row))]


def ask_service(note: str) -> str:
    """The prompt of a multiple-choice example; it ends with a newline, so the answer is a line of its own."""
    return f"{note}\nWhich service?\n"


def ask_sentence(note: str) -> str:
    """The prompt of a free-text example."""
    return f"{note}\nIn a sentence?\n"


def _below(rng: Random, bound: int) -> int:
    # `random()` keeps its stream between Python versions; `randrange` has not always.
    return int(rng.random() * bound)
