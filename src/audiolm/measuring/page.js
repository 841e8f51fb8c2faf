// Players: a cursor over the spectrogram, a click there seeks, and one sound at a time. Without scripts the players still play.
for (const figure of document.querySelectorAll("figure")) {
  const audio = figure.querySelector("audio"), picture = figure.querySelector(".picture"), cursor = figure.querySelector(".cursor");
  const share = parseFloat(picture.querySelector("img").style.width) / 100; // of the picture's width that is sound
  const follow = () => {
    cursor.style.left = `${100 * share * audio.currentTime / audio.duration}%`;
    if (!audio.paused) requestAnimationFrame(follow);
  };
  audio.addEventListener("play", () => {
    for (const other of document.querySelectorAll("audio")) if (other !== audio) other.pause();
    figure.classList.add("playing");
    follow();
  });
  audio.addEventListener("seeking", follow);
  audio.addEventListener("pause", () => figure.classList.remove("playing"));
  picture.addEventListener("click", event => {
    const box = picture.getBoundingClientRect();
    // Until the browser knows the length, a click only plays.
    if (audio.duration) audio.currentTime = Math.min(1, (event.clientX - box.left) / box.width / share) * audio.duration;
    audio.play();
  });
}
