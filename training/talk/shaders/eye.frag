#version 330
#include "light.glsl"

in vec3 at;
in vec3 on_ball;
in vec3 in_socket;
in vec3 facing;
in vec4 in_light;

uniform vec3 iris_colour;
uniform vec2 lids;  // heights of the upper and lower lid, which shade the ball

out vec4 colour;

const float IRIS = 0.425;   // its radius on the unit sphere
const float PUPIL = 0.38;   // its radius as a share of the iris

void main() {
    vec3 view = normalize(camera - at);
    vec3 n = normalize(facing);
    float out_from_pupil = length(on_ball.xy) / IRIS;
    float around = atan(on_ball.y, on_ball.x);

    float fibres = 0.5 + 0.25 * sin(around * 23.0 + 3.0 * sin(around * 7.0));
    fibres += 0.25 * sin(around * 41.0 + out_from_pupil * 9.0 + 2.0 * sin(around * 5.0));
    vec3 iris = iris_colour * (0.55 + 0.75 * fibres * smoothstep(0.25, 0.8, out_from_pupil));
    iris *= mix(1.35, 0.75, smoothstep(0.4, 0.95, out_from_pupil));
    iris = mix(iris, iris * vec3(1.3, 1.0, 0.6), smoothstep(0.6, 0.38, out_from_pupil) * 0.6);
    iris *= 1.0 - 0.75 * smoothstep(0.80, 1.02, out_from_pupil);
    iris = mix(vec3(0.008), iris, smoothstep(PUPIL - 0.04, PUPIL + 0.04, out_from_pupil));

    float to_corner = abs(in_socket.x);
    vec3 white = vec3(0.80, 0.765, 0.74) * mix(vec3(1.0), vec3(0.93, 0.74, 0.69), smoothstep(0.5, 1.02, to_corner));
    vec3 albedo = mix(iris, white, smoothstep(0.93, 1.06, out_from_pupil));
    if (on_ball.z < 0.0) {
        albedo = white * 0.8;
    }

    float lit = mix(1.0, key_visible(in_light, 0.004), 0.75);
    float shaded = smoothstep(lids.x + 0.02, lids.x - 0.42, in_socket.y) * 0.78 + 0.22;
    shaded *= smoothstep(lids.y - 0.10, lids.y + 0.20, in_socket.y) * 0.4 + 0.6;
    shaded *= 1.0 - 0.45 * smoothstep(0.45, 0.85, to_corner);

    vec3 diffuse = key_colour * max(dot(n, key_direction) * 0.75 + 0.25, 0.0) * lit;
    diffuse += fill_colour * max(dot(n, fill_direction) * 0.7 + 0.3, 0.0);
    diffuse += ambient(n) * 0.9;
    diffuse += rim_colour * max(dot(n, rim_direction), 0.0);

    // Window-like catch lights rather than a material's highlight: they are what makes an eye look alive.
    vec3 mirrored = reflect(-view, n);
    float key_glint = smoothstep(0.955, 0.985, dot(mirrored, key_direction));
    float fill_glint = smoothstep(0.965, 0.99, dot(mirrored, normalize(fill_direction + vec3(0.0, 0.25, 0.0))));
    float fresnel = 0.03 + 0.6 * pow(1.0 - max(dot(n, view), 0.0), 5.0);
    vec3 specular = key_colour * key_glint * 0.55 * lit + fill_colour * fill_glint * 0.4;
    specular += ambient(mirrored) * fresnel * 1.2;
    specular *= mix(0.35, 1.0, smoothstep(1.15, 0.9, out_from_pupil));
    specular *= smoothstep(lids.x + 0.05, lids.x - 0.15, in_socket.y);

    colour = vec4(tone_mapped(albedo * diffuse * shaded * 0.92 + specular), 1.0);
}
